_base_ = "../rkd.py"

method = dict(max_rows=None)
