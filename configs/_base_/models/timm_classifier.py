# Any network of timm; `pretrained=True` downloads its ImageNet weights.
model = dict(
    type="PretrainedTimmClassifier",
    pretrained=False,
    loss=dict(type="LabelSmoothLoss", label_smooth_val=0.1),
)
