_base_ = "timm_classifier.py"

model = dict(model_name="resnet50")
