_base_ = "timm_classifier.py"

model = dict(model_name="vit_small_patch16_224")
