# A few hundred iterations of 8 small images, in full precision: runs without a GPU.
max_iters = 300

train_cfg = dict(type="ResumableIterBasedTrainLoop", max_iters=max_iters, val_interval=100)

optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=0.002, weight_decay=0.05),
    paramwise_cfg=dict(custom_keys={"bbox_head": dict(lr_mult=0.2)}),
    clip_grad=dict(max_norm=5.0),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=50),
    dict(type="CosineAnnealingLR", by_epoch=False, begin=50, end=max_iters),
]
auto_scale_lr = dict(enable=False, base_batch_size=8)
