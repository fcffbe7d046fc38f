_base_ = "../pat.py"

method = dict(raa_grid=4, raa_dim=512)
