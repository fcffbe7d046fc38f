_base_ = "timm_classifier.py"

# The bare name stands for weights from ImageNet-12k in timm; the paper's are from ImageNet-1k.
model = dict(model_name="convnext_tiny.fb_in1k")
