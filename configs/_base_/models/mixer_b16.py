_base_ = "timm_classifier.py"

model = dict(model_name="mixer_b16_224")
