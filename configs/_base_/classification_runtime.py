# For classifiers of mmpretrain, counted in epochs.
_base_ = "default_runtime.py"

default_scope = "mmpretrain"

default_hooks = dict(
    logger=dict(interval=100, log_metric_by_epoch=True),
    checkpoint=dict(by_epoch=True, interval=1),
    visualization=dict(type="VisualizationHook", enable=False),
)
visualizer = dict(type="UniversalVisualizer")
log_processor = dict(by_epoch=True)
