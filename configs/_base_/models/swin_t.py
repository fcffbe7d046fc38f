_base_ = "timm_classifier.py"

model = dict(model_name="swin_tiny_patch4_window7_224")
