_base_ = "pat.py"

method = dict(prompt="spatial")
