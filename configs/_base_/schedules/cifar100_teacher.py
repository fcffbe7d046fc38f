# 300 epochs of fine-tuning from ImageNet weights, at a tenth of the rate, without EMA.
_base_ = "cifar100_vit.py"

optim_wrapper = dict(optimizer=dict(lr=5e-5))
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=0.001,
        by_epoch=True,
        begin=0,
        end=20,
        convert_to_iter_based=True,
    ),
    dict(type="CosineAnnealingLR", eta_min=1e-6, by_epoch=True, begin=20, end=300),
]
custom_hooks = []
