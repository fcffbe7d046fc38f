_base_ = "../ofa.py"

method = dict(branch="stages", eps=1.0)
