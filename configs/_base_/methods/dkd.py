# The published runs on COCO: alpha 2 for the ResNet18 student, alpha 1 for MobileNetV2
# (`--cfg-options model.method.alpha=1.0`).
method = dict(
    type="DKD",
    kd_weight=1.0,
    temperature=1.0,
    detection=dict(alpha=2.0, beta=0.25),
    classification=dict(alpha=1.0, beta=2.0),
)
