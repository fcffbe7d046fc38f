# PAT without prompts: region-aware attention and KD. The released code for detection freezes the
# prompts at their initial 0, so this is what the numbers published for COCO belong to.
_base_ = "pat.py"

method = dict(afp_stages=())
