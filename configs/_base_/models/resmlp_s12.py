_base_ = "timm_classifier.py"

model = dict(model_name="resmlp_12_224")
