custom_imports = dict(imports=["pat_mmdet"], allow_failed_imports=False)
default_scope = "mmdet"

default_hooks = dict(
    timer=dict(type="IterTimerHook"),
    logger=dict(type="LoggerHook", interval=50, log_metric_by_epoch=False),
    param_scheduler=dict(type="ParamSchedulerHook"),
    # The one before the last is what to resume from if the last is damaged.
    checkpoint=dict(type="SafeCheckpointHook", by_epoch=False, interval=5000, max_keep_ckpts=2),
    sampler_seed=dict(type="DistSamplerSeedHook"),
    visualization=dict(type="TolerantVisualizationHook"),
    # Refuses a config which our tools would run otherwise than MMEngine's Runner alone.
    config_check=dict(type="CheckConfigHook"),
    # Stops at a loss or gradient norm that is not finite; max_skips leaves so many steps out before.
    finite_check=dict(type="CheckFiniteHook", interval=50, max_skips=0),
    # Seconds for which a worker of a data loader may be stopped.
    stopped_workers=dict(type="StoppedWorkerHook", timeout=300),
    # A bar below the log lines of a terminal; None for lines alone.
    progress=dict(type="ProgressBarHook"),
)

env_cfg = dict(
    cudnn_benchmark=False,
    mp_cfg=dict(mp_start_method="fork", opencv_num_threads=0),
    # Seconds for which a process may keep the others waiting. Longer than any evaluation, which the
    # first process computes alone.
    dist_cfg=dict(backend="nccl", timeout=900),
)

vis_backends = [dict(type="LocalVisBackend")]
visualizer = dict(type="DetLocalVisualizer", vis_backends=vis_backends, name="visualizer")
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=False)

log_level = "INFO"
load_from = None
resume = False
# mmengine draws the seed where it is None, and keeps it in the checkpoints.
randomness = dict(seed=None)
