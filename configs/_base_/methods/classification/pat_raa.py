_base_ = "pat.py"

method = dict(afp_stages=())
