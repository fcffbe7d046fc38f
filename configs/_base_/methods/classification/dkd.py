_base_ = "../dkd.py"

method = dict(alpha=1.0, beta=2.0)
