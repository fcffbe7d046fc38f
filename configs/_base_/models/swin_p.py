_base_ = "timm_classifier.py"

model = dict(model_name="swin_pico_patch4_window7_224")
