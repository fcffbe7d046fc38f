_base_ = "pat.py"

method = dict(afp_stages=(2, 3), prompted_share=0.5)
