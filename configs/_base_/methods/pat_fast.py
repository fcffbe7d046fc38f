# PAT with less than half of its extra cost: prompts at the last two of four stages, on half of the
# batch; features of the other half are compared with the plain teacher's.
_base_ = "pat.py"

method = dict(afp_stages=(2, 3), prompted_share=0.5)
