_base_ = "timm_classifier.py"

model = dict(model_name="mobilenetv2_100")
