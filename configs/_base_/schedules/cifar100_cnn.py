# 300 epochs of 128 images for CNNs: SGD, cosine, EMA of 0.9998 as in the runs of PAT.
train_cfg = dict(type="ResumableEpochBasedTrainLoop", max_epochs=300, val_interval=10)

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="SGD", lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.002),
    # As in timm, norms and biases do not decay.
    paramwise_cfg=dict(flat_decay_mult=0.0),
)
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=0.01,
        by_epoch=True,
        begin=0,
        end=3,
        convert_to_iter_based=True,
    ),
    dict(type="CosineAnnealingLR", eta_min=0.001, by_epoch=True, begin=3, end=300),
]
custom_hooks = [
    dict(
        type="StudentEMAHook",
        ema_type="ExponentialMovingAverage",
        momentum=0.0002,
        update_buffers=True,
        priority="ABOVE_NORMAL",
    )
]
# The rates above are for this effective batch: images per GPU × GPUs.
auto_scale_lr = dict(enable=False, base_batch_size=128)

# What published runs changed (`--settings published`): all but PAT's were without EMA.
published = {
    method: dict(custom_hooks=[])
    for method in ("none", "kd", "dkd", "dist", "ofa", "fitnet", "cc", "rkd", "crd")
}
