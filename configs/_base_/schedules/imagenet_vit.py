# 300 epochs of 512 images for transformers and MLPs: AdamW, cosine, EMA of 0.99996.
_base_ = "cifar100_vit.py"

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
custom_hooks = [
    dict(
        type="StudentEMAHook",
        ema_type="ExponentialMovingAverage",
        momentum=0.00004,
        update_buffers=True,
        priority="ABOVE_NORMAL",
    )
]
auto_scale_lr = dict(base_batch_size=512)

# All published runs had this EMA.
published = dict(_delete_=True)
