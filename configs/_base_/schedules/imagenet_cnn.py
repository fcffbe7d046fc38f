# 100 epochs of 256 images for CNNs: SGD, steps, EMA of 0.9998 as in the runs of PAT.
_base_ = "cifar100_cnn.py"

train_cfg = dict(max_epochs=100)

optim_wrapper = dict(optimizer=dict(lr=0.1, weight_decay=0.0001))
param_scheduler = [
    dict(
        type="LinearLR",
        start_factor=0.01,
        by_epoch=True,
        begin=0,
        end=3,
        convert_to_iter_based=True,
    ),
    dict(type="MultiStepLR", milestones=[30, 60, 90], gamma=0.1, by_epoch=True),
]
auto_scale_lr = dict(base_batch_size=256)
