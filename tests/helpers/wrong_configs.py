"""Wrong configs: shipped ones with one fault each."""

import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple

from helpers.tools import ROOT

from pat_mmdet.utils import load_config
from pat_mmdet.utils.config_tables import TOP_KEYS

DETECTION = "configs/pat/swin_p-res18_digits.py"
CLASSIFICATION = "configs/pat/tinyvit_mini-res18_mini_cifar10.py"
REMOVED = "removed"
NAN, INF = float("nan"), float("inf")
# Arguments of timm's models, which refuse others when they are built.
_OF_TIMM = ("num_classes", "embed_dims", "depths", "num_heads", "window_sizes")
# What is free to the user, or read by other programs.
_FREE = ("custom_keys", "custom_imports", "metainfo", "init_cfg", "meta_keys")


class Fault(NamedTuple):
    """A change that makes a config wrong.

    Attributes:
        kind (str): ``'typo'``, ``'type'``, ``'number'``, or the name of a table.
        key (str): Dotted key of the place.
        value (Any): Its new value; for a typo, the new name of the last part of the key.
    """

    kind: str
    key: str
    value: Any

    def apply(self, cfg):
        """A copy of a config with the fault."""
        cfg = deepcopy(cfg)
        path, _, last = self.key.rpartition(".")
        node = at(cfg, path)
        last = int(last) if isinstance(node, list) else last
        if self.kind == "typo":
            node[self.value] = node.pop(last)
        elif self.value == REMOVED:
            node.pop(last)
        else:
            node[last] = deepcopy(self.value)
        return cfg


def load(path):
    return load_config(str(ROOT / path))


def misspell(name: str, rng: random.Random) -> str:
    """A name with two letters swapped, one left out, or one doubled."""
    place = rng.randrange(1, len(name) - 1)
    while True:
        changed = rng.choice(
            (
                name[:place] + name[place + 1] + name[place] + name[place + 2 :],
                name[:place] + name[place + 1 :],
                name[:place] + name[place] + name[place:],
            )
        )
        if changed != name:
            return changed


def _places(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Key and value of every place of a config."""
    items = enumerate(node) if isinstance(node, (list, tuple)) else node.items()
    for key, value in items:
        yield f"{path}{key}", value
        if isinstance(value, (dict, list)) and key not in _FREE:
            yield from _places(value, f"{path}{key}.")


def random_faults(path: str, cfg, seed: int) -> list[Fault]:
    """A misspelt name, a wrong type and a number that is none, at every place of a config."""
    rng = random.Random(seed)
    found = []
    for key, value in _places(cfg):
        if key.partition(".")[0] not in TOP_KEYS:
            continue  # a variable
        name = key.rpartition(".")[2]
        if key.startswith("model.teacher.") and name in _OF_TIMM and path == CLASSIFICATION:
            continue
        # At the top a name may be a variable; a file that has it says whether it is read.
        if "." in key and not name.isdigit() and len(name) > 4:
            found.append(Fault("typo", key, misspell(name, rng)))
        if isinstance(value, bool):
            found.append(Fault("type", key, str(value)))
        elif isinstance(value, (int, float)):
            found += [Fault("type", key, "many"), Fault("number", key, rng.choice((NAN, INF)))]
        elif isinstance(value, (str, dict)):
            found.append(Fault("type", key, rng.choice((7, True))))
    return found


_METHOD, _OPTIMIZER = "model.method", "optim_wrapper.optimizer"
_CHECKPOINT, _HEAD = "default_hooks.checkpoint", "model.student.roi_head.bbox_head"
# Values out of range, by place; of both tasks.
_RANGES = {
    f"{_METHOD}.temperature": (0, -1),
    f"{_METHOD}.fd_weight": (-0.5,),
    f"{_METHOD}.kd_weight": (-1,),
    f"{_METHOD}.reg_weight": ("0",),
    f"{_METHOD}.prompted_share": (0, 1.5),
    f"{_METHOD}.raa_grid": (0, 2.5),
    f"{_METHOD}.feedback": ("next", None),
    f"{_METHOD}.prompt": ("dense",),
    f"{_METHOD}.afp_stages": ((-1,), "all", 2),
    "model.input_size": (64, (64,), (64, 0), (64, 64, 3), []),
    "model.fast_teacher": ("False", 0),
    "model.teacher_dtype": ("int8", 16),
    "model.compile": ("no",),
    "train_dataloader.batch_size": (0, -8, 2.5, "8"),
    "train_dataloader.num_workers": (-1, "two"),
    "train_dataloader.drop_last": ([True],),
    "train_dataloader.sampler.shuffle": ("False",),
    "train_dataloader.dataset.data_root": (3,),
    "train_dataloader.dataset.pipeline": ([], "none", {}),
    "train_dataloader.dataset.pipeline.2.prob": (1.5, -0.5, "half"),
    "val_dataloader.dataset.test_mode": ("True",),
    "val_dataloader.batch_size": (0,),
    "train_cfg.val_interval": (0, -1, "10"),
    "train_cfg.type": ("ResumableLoop", "ValLoop", "Adam", None),
    "val_evaluator": ({}, []),
    f"{_OPTIMIZER}.lr": (0, -0.1, "0.1", None, [0.1], True),
    f"{_OPTIMIZER}.weight_decay": (-0.05, "none"),
    f"{_OPTIMIZER}.betas": ((0.9, 1.5), 0.9),
    f"{_OPTIMIZER}.type": ("SDG", "FPN", 3),
    "optim_wrapper.clip_grad": (5, "norm", True),
    "optim_wrapper.clip_grad.max_norm": (-5, 0, "5"),
    "optim_wrapper.clip_grad.norm_type": (0,),
    "optim_wrapper.accumulative_counts": (0, -1, 1.5),
    "optim_wrapper.paramwise_cfg.flat_decay_mult": (-1,),
    "optim_wrapper.type": ("AmpWrapper", "SGD"),
    "param_scheduler.0.begin": (-1, 10**6),
    "param_scheduler.0.end": (0, -1, "last"),
    "param_scheduler.0.start_factor": (2, -1),
    "param_scheduler.0.by_epoch": ("False",),
    "param_scheduler.1.T_max": (0, -10),
    "param_scheduler.1.eta_min": (-1,),
    "param_scheduler.1.type": ("CosineLR", "AdamW"),
    f"{_CHECKPOINT}.interval": (0, -1, "all"),
    f"{_CHECKPOINT}.by_epoch": ("True",),
    f"{_CHECKPOINT}.max_keep_ckpts": ("two",),
    f"{_CHECKPOINT}.save_best": ("mAP", ["coco/bbox"], 3),
    f"{_CHECKPOINT}.type": ("CheckpointHook", "SaveHook"),
    "default_hooks.logger.interval": (0, -50),
    "log_processor.window_size": (0, -1),
    "log_level": (20,),
    "randomness.seed": (-1, "random", 0.5),
    "randomness.deterministic": ("True",),
    "env_cfg.cudnn_benchmark": ("False",),
    "env_cfg.mp_cfg.mp_start_method": ("thread",),
    "env_cfg.mp_cfg.opencv_num_threads": (-1,),
    "auto_scale_lr.enable": ("False",),
    "auto_scale_lr.base_batch_size": (0,),
    "resume": ("True", 1),
    "load_from": (7, True),
    "work_dir": (7,),
    "default_scope": (7,),
}
_OF_TASKS = {
    DETECTION: {
        "train_cfg.max_iters": (0, -1, 10.5, "all", None),
        "model.feature_strides": ([0], "all", 4),
        f"{_HEAD}.num_classes": (0, -1, 3, "ten"),
        f"{_HEAD}.loss_cls.loss_weight": (-1,),
        "model.teacher.roi_head.bbox_head.num_classes": (3,),
        "model.student.neck.num_outs": (0, 2.5),
        "model.student.neck.in_channels": (64, [64, -1]),
        "model.student.rpn_head.anchor_generator.scales": (8, "8"),
        "model.student.data_preprocessor.std": ([58, 0, 57], 58),
        "model.student.data_preprocessor.bgr_to_rgb": ("True",),
        "model.student.test_cfg.rcnn.score_thr": (1.5,),
        "model.student.test_cfg.rcnn.nms.iou_threshold": (2, -0.5),
        "model.student.train_cfg.rcnn.sampler.num": ("all",),
        "train_dataloader.dataset.metainfo.classes": ((), ("a", "b"), 10),
        "train_dataloader.dataset.filter_cfg.min_size": (-1,),
        "train_dataloader.dataset.ann_file": (7,),
        "val_evaluator.ann_file": ("other.json", 7),
        "val_evaluator.metric": ("boxes", 7),
        "val_dataloader.dataset.pipeline.1.scale": ((0, 64), "big"),
    },
    CLASSIFICATION: {
        "train_cfg.max_epochs": (0, -3, 1.5, None),
        "model.student.head.num_classes": (0, 3, "ten"),
        "model.student.head.loss.label_smooth_val": (-0.1, 1.5),
        "model.teacher.num_classes": (3,),
        "model.student.data_preprocessor.to_rgb": ("True",),
        "train_dataloader.drop_last": ("True",),
        "train_dataloader.dataset.metainfo.classes": ((), ("a", "b")),
        "train_dataloader.dataset.pipeline.1.scale": (0, -32),
        "val_evaluator.topk": ((0,), (1, 20), "1"),
    },
}
# Parts that are missing.
_MISSING = (
    *("model", "train_dataloader", "val_dataloader", "optim_wrapper", "train_cfg", "val_cfg"),
    *("val_evaluator", f"{_OPTIMIZER}.type", "optim_wrapper.optimizer", "model.type"),
    *("model.student", "model.student.type", "model.student.backbone.type", "model.method"),
    *("model.method.type", "model.teacher_checkpoint", "train_dataloader.dataset"),
    *("train_dataloader.dataset.type", "train_dataloader.dataset.pipeline.0"),
    *("train_dataloader.dataset.pipeline.3", "train_dataloader.dataset.pipeline.1.type"),
    *("train_dataloader.sampler", "param_scheduler.0.type", f"{_CHECKPOINT}.type"),
)
# Sections of one kind in the place of another.
_SWAPPED = (
    ("train_dataloader", "val_evaluator"),
    ("val_evaluator", "val_dataloader"),
    ("train_cfg", "val_cfg"),
    ("val_cfg", "train_cfg"),
    ("optim_wrapper", _OPTIMIZER),
    (_OPTIMIZER, "param_scheduler.0"),
    ("param_scheduler", "default_hooks"),
    ("param_scheduler.0", _OPTIMIZER),
    ("default_hooks.logger", "log_processor"),
    (_CHECKPOINT, "default_hooks.logger"),
    ("model", "model.student.backbone"),
    ("model.method", "model.student"),
    ("model.student", "model.method"),
    ("model.student.backbone", "model.student.neck"),
    ("model.student.neck", "model.student.backbone"),
    ("model.student.data_preprocessor", "model.student.neck"),
    ("train_dataloader.dataset", "train_dataloader.sampler"),
    ("train_dataloader.sampler", "train_dataloader.dataset"),
    ("train_dataloader.dataset.pipeline", "train_dataloader.dataset"),
    ("visualizer", "vis_backends"),
    ("val_evaluator", "model.method"),
    ("randomness", "env_cfg"),
)
_INFINITE = {"type": "InfiniteSampler"}
# What is legal by itself, and contradicts another part.
_CONTRADICTIONS = {
    DETECTION: {
        "param_scheduler.1.by_epoch": True,
        f"{_CHECKPOINT}.by_epoch": True,
        "log_processor.by_epoch": True,
        "train_cfg.type": "ResumableEpochBasedTrainLoop",
        "val_dataloader.sampler": _INFINITE,
        "train_dataloader.num_workers": 0,
        "train_dataloader.dataset.type": "CustomDataset",
        "val_evaluator.type": "Accuracy",
        "model.student.type": "ImageClassifier",
        "model.type": "ClassificationDistiller",
    },
    CLASSIFICATION: {
        f"{_CHECKPOINT}.by_epoch": False,
        "log_processor.by_epoch": False,
        "train_cfg.type": "ResumableIterBasedTrainLoop",
        "train_dataloader.sampler": _INFINITE,
        "val_dataloader.sampler": _INFINITE,
        "train_dataloader.num_workers": 0,
        "train_dataloader.dataset.type": "CheckedCocoDataset",
        "val_evaluator.type": "CheckedCocoMetric",
        "model.student.type": "FasterRCNN",
        "model.type": "DetectionDistiller",
    },
}


def written_faults(path: str, cfg) -> list[Fault]:
    """Faults of the tables."""
    ranges = {**_RANGES, **_OF_TASKS[path]}
    return [
        *(Fault("range", key, value) for key, values in ranges.items() for value in values),
        *(Fault("missing", key, REMOVED) for key in _MISSING),
        *(Fault("swapped", key, at(cfg, other)) for key, other in _SWAPPED),
        *(Fault("contradiction", key, value) for key, value in _CONTRADICTIONS[path].items()),
    ]


def at(cfg, key: str):
    """The value at a dotted key."""
    for part in filter(None, key.split(".")):
        cfg = cfg[int(part)] if isinstance(cfg, (list, tuple)) else cfg[part]
    return cfg
