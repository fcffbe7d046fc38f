_base_ = "timm_classifier.py"

model = dict(model_name="deit_tiny_patch16_224")
