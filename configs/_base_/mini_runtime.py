_base_ = "default_runtime.py"

default_hooks = dict(
    logger=dict(interval=10),
    checkpoint=dict(interval=100),
)
