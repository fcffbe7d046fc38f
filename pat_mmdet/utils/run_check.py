"""Check that loops, schedules, data loaders, hooks and evaluators of a config fit together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from mmengine.hooks import CheckpointHook, IterTimerHook, LoggerHook, ParamSchedulerHook
from mmengine.model import BaseModel
from mmengine.runner import EpochBasedTrainLoop, IterBasedTrainLoop, TestLoop, ValLoop

from pat_mmdet.utils.config_parts import SPLITS, data_sets, evaluators, has_config_check
from pat_mmdet.utils.errors import ConfigError
from pat_mmdet.utils.nested import walk
from pat_mmdet.utils.type_names import extends, find_class

# What a split has to have if it has one of them.
_PIECES = {
    "train": ("train_dataloader", "train_cfg", "optim_wrapper"),
    "val": ("val_dataloader", "val_cfg", "val_evaluator"),
    "test": ("test_dataloader", "test_cfg", "test_evaluator"),
}
# Those whose metrics are known before they are computed.
_COCO_METRICS = ("CheckedCocoMetric", "CocoMetric", "FasterCocoMetric")
_COCO_TASKS = ("bbox", "segm", "proposal", "proposal_fast")
_COCO_ITEMS = ("mAP", "mAP_50", "mAP_75", "mAP_s", "mAP_m", "mAP_l")
_DEFAULT_HOOKS = {
    "checkpoint": CheckpointHook,
    "logger": LoggerHook,
    "param_scheduler": ParamSchedulerHook,
    "timer": IterTimerHook,
}
# Where mmdet and mmpretrain have the classes for a part of a model.
_FOLDERS = {
    "backbone": "backbones",
    "data_preprocessor": "data_preprocessors",
    "head": "heads",
    "neck": "necks",
}
# Whose transforms are known to load and pack by their names.
_LIBRARIES = {"mmcv", "mmdet", "mmengine", "mmpretrain", "pat_mmdet"}
# What a distiller of a task cannot train.
_FOREIGN_MODELS = {"detection": "BaseClassifier", "classification": "BaseDetector"}


def check_run(cfg: Mapping[str, Any]) -> None:
    """Check that the parts of a run fit together.

    Args:
        cfg (Mapping): A config whose single values are legal, see :func:`check_arguments`.

    Raises:
        ConfigError: If parts are missing or contradict each other.
    """
    if has_config_check(cfg):  # others may be meant for another program
        _check_pieces(cfg)
    _check_counting(cfg)
    for path, scheduler in _schedulers(cfg):
        _check_scheduler(path, scheduler)
    for split in SPLITS:
        _check_loader(cfg, split)
    _check_default_hooks(cfg)
    _check_checkpoints(cfg)
    _check_models(cfg)


def _check_pieces(cfg: Mapping) -> None:
    """Check that a split has all of its parts or none, and that there is a model for them."""
    for keys in _PIECES.values():
        there = [key for key in keys if cfg.get(key) not in (None, [], ())]
        missing = [key for key in keys if key not in there]
        if there and missing:
            raise ConfigError(
                f"{missing[0]} is not set but {there[0]} is; set {', '.join(keys)}, or none of them"
            )
        if there and not cfg.get("model"):
            raise ConfigError(f"model is not set but {there[0]} is; set model")
        for key in ("dataset", "sampler") if there else ():
            if isinstance(cfg[keys[0]], Mapping) and not cfg[keys[0]].get(key):
                raise ConfigError(f"{keys[0]}.{key} is not set; set it")


def _is_a(target: Any, base: type) -> bool:
    return isinstance(target, type) and issubclass(target, base)


def _check_models(cfg: Mapping) -> None:
    """Check that models can be trained, fit the distiller's task, and have their parts in place."""
    models = {"model": cfg.get("model")}
    task = getattr(find_class("model", cfg.get("model"), cfg), "task", None)
    if task in _FOREIGN_MODELS:
        models.update((f"model.{name}", cfg["model"].get(name)) for name in ("student", "teacher"))
    for path, node in models.items():
        target = find_class("model", node, cfg)
        if isinstance(target, type) and not issubclass(target, BaseModel):
            raise ConfigError(f"{path}.type={node['type']!r} is a part of a model, and no model")
        if path != "model" and extends(target, _FOREIGN_MODELS[task]):
            raise ConfigError(
                f"{path}.type={node['type']!r} does not fit model.type={cfg['model']['type']!r}, "
                f"which is for {task}"
            )
        for role, folder in _FOLDERS.items():
            part = (node or {}).get(role)
            module = getattr(find_class("model", part, cfg), "__module__", "")
            for other in _FOLDERS.values():
                if other != folder and f".{other}." in module:
                    raise ConfigError(
                        f"{path}.{role}.type={part['type']!r} is one of the {other}; set one of "
                        f"the {folder}"
                    )


def _check_default_hooks(cfg: Mapping) -> None:
    """Check that hooks which MMEngine knows by their names are of their kinds."""
    hooks = cfg.get("default_hooks") or {}
    for name, base in _DEFAULT_HOOKS.items():
        target = find_class("hook", hooks.get(name), cfg)
        if isinstance(target, type) and not issubclass(target, base):
            raise ConfigError(
                f"default_hooks.{name}.type={hooks[name]['type']!r} is no {base.__name__}; put "
                "other hooks into custom_hooks"
            )


def _counts_epochs(cfg: Mapping) -> bool | None:
    """Return True if training is counted in epochs, None if that is not known."""
    loop = cfg.get("train_cfg") or {}
    if "type" not in loop:
        return loop.get("by_epoch")
    target = find_class("loop", loop, cfg)
    if _is_a(target, EpochBasedTrainLoop):
        return True
    return False if _is_a(target, IterBasedTrainLoop) else None


def _check_counting(cfg: Mapping) -> None:
    """Check the loops, and that what is counted in epochs or iterations fits that of training."""
    for key, wrong in (
        ("train_cfg", (ValLoop, TestLoop)),
        ("val_cfg", (EpochBasedTrainLoop, IterBasedTrainLoop)),
        ("test_cfg", (EpochBasedTrainLoop, IterBasedTrainLoop)),
    ):
        if any(_is_a(find_class("loop", cfg.get(key), cfg), kind) for kind in wrong):
            raise ConfigError(f"{key}.type={cfg[key]['type']!r} is a loop for something else")
    epochs = _counts_epochs(cfg)
    if epochs is None:
        return
    unit = "epochs" if epochs else "iterations"
    parts = {
        "default_hooks.checkpoint": (cfg.get("default_hooks") or {}).get("checkpoint"),
        "log_processor": cfg.get("log_processor"),
    }
    for path, node in parts.items():
        if isinstance(node, Mapping) and node.get("by_epoch", True) != epochs:
            raise ConfigError(
                f"{path}.by_epoch={node.get('by_epoch', True)} but train_cfg counts {unit}; set "
                f"{path}.by_epoch={epochs}"
            )
    if epochs:
        return
    for path, node in _schedulers(cfg):
        if node.get("by_epoch", True):
            raise ConfigError(
                f"{path}.by_epoch=True but train_cfg counts iterations: the rate would never "
                f"change; set {path}.by_epoch=False, and begin, end and milestones in iterations"
            )


def _schedulers(cfg: Mapping) -> Iterator[tuple[str, Mapping]]:
    """Yield path and config of the schedulers."""
    value = cfg.get("param_scheduler") or []
    listed = value if isinstance(value, (list, tuple)) else [value]
    for index, node in enumerate(listed):
        # Several optimizers have a dict of lists.
        if isinstance(node, Mapping) and "type" in node:
            path = "param_scheduler" if listed is not value else f"param_scheduler.{index}"
            yield path, node


def _check_scheduler(path: str, node: Mapping) -> None:
    """Check the interval of a scheduler."""
    begin, end = node.get("begin", 0), node.get("end")
    if end is not None and begin >= end:
        raise ConfigError(f"{path}.begin={begin} is not before {path}.end={end}")
    milestones = list(node.get("milestones", ()))
    if milestones != sorted(set(milestones)):
        raise ConfigError(f"{path}.milestones={milestones}: give each once, in ascending order")


def notes(cfg: Mapping) -> list[str]:
    """Return what of a config is legal, but may not do what was meant."""
    return [*_distiller_notes(cfg), *_schedule_notes(cfg)]


def _distiller_notes(cfg: Mapping) -> list[str]:
    """Return which setting of a distiller has no effect, and whether a resume is inexact."""
    model = cfg.get("model") or {}
    networks = [model.get(name) for name in ("student", "teacher")]
    if not all(isinstance(node, Mapping) for node in networks):
        return []
    found = []
    if cfg.get("data_preprocessor") and all(node.get("data_preprocessor") for node in networks):
        found.append(
            "data_preprocessor at the top has no effect, as student and teacher have their own; "
            "change model.student.data_preprocessor and model.teacher.data_preprocessor"
        )
    teacher = networks[1]
    has_weights = (
        model.get("teacher_checkpoint")
        or teacher.get("pretrained")
        or teacher.get("checkpoint_path")
        or any(node.get("checkpoint") for _, node in walk(teacher.get("init_cfg")))
    )
    if not has_weights and (cfg.get("randomness") or {}).get("seed") is None:
        found.append(
            "the teacher has random weights (model.teacher_checkpoint=None), and others after a "
            "resume; set randomness.seed for the same ones"
        )
    return found


def _schedule_notes(cfg: Mapping) -> list[str]:
    """Return what of schedules and evaluation lies after the end of training."""
    loop = cfg.get("train_cfg") or {}
    epochs = _counts_epochs(cfg)
    last = loop.get("max_epochs" if epochs else "max_iters")
    notes = []
    first = loop.get("val_begin", 1)
    if last is not None and first > last:
        notes.append(
            f"train_cfg.val_begin={first} lies after the end of training ({last}): no evaluation"
        )
    for path, node in _schedulers(cfg):
        if last is None or node.get("by_epoch", True) != epochs:
            continue
        points = {"end": node.get("end"), "T_max": node.get("T_max"), "begin": node.get("begin")}
        points.update((f"milestones.{i}", x) for i, x in enumerate(node.get("milestones", ())))
        late = [f"{key}={point}" for key, point in points.items() if point and point > last]
        if late:
            notes.append(
                f"{path}: {', '.join(late)} lies after the end of training ({last}) and is not "
                "reached"
            )
    return notes


def _check_loader(cfg: Mapping, split: str) -> None:
    """Check sampler and pipelines of a data loader."""
    path = f"{split}_dataloader"
    loader = cfg.get(path)
    if not isinstance(loader, Mapping):
        return
    sampler = loader.get("sampler")
    endless = isinstance(sampler, Mapping) and "Infinite" in str(sampler.get("type"))
    if endless and (split != "train" or _counts_epochs(cfg)):
        raise ConfigError(
            f"{path}.sampler.type={sampler['type']!r} never ends, so neither does an epoch; set "
            "DefaultSampler, or train by iterations"
        )
    if not loader.get("num_workers") and loader.get("persistent_workers"):
        raise ConfigError(
            f"{path}.persistent_workers=True needs {path}.num_workers of at least 1; set it to "
            "False for num_workers=0"
        )
    _check_pipelines(cfg, split)


def _check_pipelines(cfg: Mapping, split: str) -> None:
    """Check that images are loaded first and packed last.

    Raises:
        ConfigError: If they are not loaded or packed, or in another order.
    """
    nodes = list(walk(cfg[f"{split}_dataloader"], f"{split}_dataloader"))
    pipelines = {
        f"{path}.pipeline": [str(item.get("type")).rpartition(".")[2] for item in node["pipeline"]]
        for path, node in nodes
        if isinstance(node.get("pipeline"), (list, tuple))
    }
    for path, names in pipelines.items():
        for index, name in enumerate(names):
            if name.startswith("LoadImage") and index > 0:
                raise ConfigError(f"{path}.{index}: {name} has to come first")
            if name.startswith("Pack") and index < len(names) - 1:
                raise ConfigError(f"{path}.{index}: {name} has to come last")
    found = [find_class("transform", node, cfg) for _, node in nodes]
    transforms = [item for item in found if isinstance(item, type)]
    names = [transform.__name__ for transform in transforms]
    roots = {transform.__module__.partition(".")[0] for transform in transforms}
    if not pipelines or roots - _LIBRARIES:
        return  # a user's own transform may load or pack
    path = next(iter(pipelines))
    if not any(name.startswith("Pack") for name in names):
        raise ConfigError(
            f"{path} packs nothing; end it with PackDetInputs in detection, with PackInputs in "
            "classification"
        )
    targets = (find_class("dataset", node, cfg) for _, node in data_sets(cfg, split))
    wanted = []
    if any(extends(target, "BaseDetDataset", "CustomDataset") for target in targets):
        # Images in files.
        wanted.append(("Image", "LoadImageFromFile"))
    if split == "train" and "PackDetInputs" in names:
        wanted.append(("Annotations", "LoadAnnotations"))
    for word, usual in wanted:
        if not any(name.startswith("Load") and word in name for name in names):
            raise ConfigError(f"{path} has no {usual}; put it at the beginning")


def _check_checkpoints(cfg: Mapping) -> None:
    """Check the hook that saves checkpoints, and by which metric it saves the best."""
    hook = (cfg.get("default_hooks") or {}).get("checkpoint")
    if not isinstance(hook, Mapping):
        return
    path = "default_hooks.checkpoint"
    if find_class("hook", hook, cfg) is CheckpointHook and has_config_check(cfg):
        raise ConfigError(
            f"{path}.type='CheckpointHook' saves pickled objects, from which the tools refuse to "
            "resume, and not the method's state; set SafeCheckpointHook"
        )
    for place, node in evaluators(cfg, "val"):
        metric = node.get("metric", "bbox")
        metric = [metric] if isinstance(metric, str) else metric
        if node.get("type") in _COCO_METRICS and not set(metric) <= set(_COCO_TASKS):
            raise ConfigError(f"{place}.metric={metric}: give some of {', '.join(_COCO_TASKS)}")
    wanted = hook.get("save_best") or []
    wanted = [wanted] if isinstance(wanted, str) else wanted
    if wanted and cfg.get("val_cfg") is None:
        raise ConfigError(
            f"{path}.save_best={wanted[0]!r} but val_cfg is not set; set both or none"
        )
    known = [_metric_names(node, cfg) for _, node in evaluators(cfg, "val")]
    if None in known:
        return
    names = [name for found in known for name in found]
    for name in wanted:
        if name != "auto" and name not in names:
            raise ConfigError(
                f"{path}.save_best={name!r} is no metric of val_evaluator; it gives "
                f"{', '.join(names)}"
            )


def _metric_names(evaluator: Mapping, cfg: Mapping) -> list[str] | None:
    """Return the names of the metrics that an evaluator gives, None if they are not known."""
    target = find_class("metric", evaluator, cfg)
    name = getattr(target, "__name__", None)
    if name in _COCO_METRICS and not evaluator.get("classwise"):
        metrics = evaluator.get("metric", "bbox")
        metrics = [metrics] if isinstance(metrics, str) else metrics
        if not set(metrics) <= set(_COCO_TASKS[:2]):
            return None
        items = evaluator.get("metric_items") or _COCO_ITEMS
        names = [f"{metric}_{item}" for metric in metrics for item in items]
    elif name == "Accuracy" and "thrs" not in evaluator:
        topk = evaluator.get("topk", (1,))
        names = [f"top{k}" for k in ([topk] if isinstance(topk, int) else topk)]
    else:
        return None
    return [f"{evaluator.get('prefix') or target.default_prefix}/{name}" for name in names]
