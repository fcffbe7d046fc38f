# 180k iterations of 8 images: SGD with momentum, mixed precision, EMA of 0.999.
train_cfg = dict(type="ResumableIterBasedTrainLoop", max_iters=180000, val_interval=10000)

optim_wrapper = dict(
    type="AmpOptimWrapper",
    loss_scale="dynamic",
    optimizer=dict(type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0001),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=False, milestones=[120000, 160000], gamma=0.1),
]
custom_hooks = [
    dict(
        type="StudentEMAHook",
        ema_type="ExponentialMovingAverage",
        momentum=0.001,
        update_buffers=True,
        priority="ABOVE_NORMAL",
    )
]
# The rates above are for this effective batch: images per GPU × GPUs.
auto_scale_lr = dict(enable=False, base_batch_size=8)
