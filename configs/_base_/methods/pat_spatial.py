# PAT as the paper's text describes it: the prompts' gates multiply their maps. `pat` has the form
# that the paper's parameter count belongs to.
_base_ = "pat.py"

method = dict(prompt="spatial")
