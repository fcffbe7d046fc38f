"""Rules for configs of MMEngine, MMDetection, mmpretrain and torch that no signature states.

Ranges of this project's own classes stand in their signatures.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Literal, Optional, Union

from mmengine.runner import Runner

from pat_mmdet.utils.argument_types import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

# What mmengine and the data transforms take out of a dict before the class gets it, by registry.
BUILDER_KEYS = {
    "hook": {"priority"},
    "loop": {"by_epoch"},
    "optim_wrapper": {"constructor", "optimizer", "paramwise_cfg"},
    "parameter scheduler": {"convert_to_iter_based"},
    # Parts of models that another part builds: norms, convolutions, losses of DETR, encoders.
    "model": {
        "bg_cls_weight",
        "deformable_groups",
        "fallback_on_stride",
        "pretrained",
        "requires_grad",
        "scale_factor",
    },
    "transform": {"magnitude_key", "magnitude_range"},  # the policies of mmpretrain's AutoAugment
    "method": {"input_size", "detection", "classification"},  # of configs of earlier versions
}
EVERYWHERE = {"type", "_scope_", "_delete_"}
# Arguments that the builder adds, by registry. Parts of models are given many by others.
GIVEN_BY_BUILDER = {
    "data sampler": {"dataset", "sampler", "batch_size"},
    "dataset": set(),
    "evaluation": {"dataset_meta"},
    "hook": set(),
    "log_processor": set(),
    "loop": {"runner", "dataloader", "evaluator"},
    "method": set(),
    "metric": set(),
    "optim_wrapper": set(),
    "optimizer": {"params"},
    "parameter scheduler": {"optimizer", "param_name"},
    "transform": set(),
}
# The top level: the Runner's arguments, and what it and tools read besides.
TOP_KEYS = {
    *inspect.signature(Runner.__init__).parameters,
    "activation_checkpointing",
    "classes",
    "compile",
    "custom_imports",
    "data_root",
    "efficient_conv_bn_eval",
    "find_unused_parameters",
    "method_options",
    "model_wrapper_cfg",
    "published",
    "settings",
    "sync_bn",
    "tta_model",
    "tta_pipeline",
    "vis_backends",
} - {"self"}
USUAL_VARIABLES = {"test_pipeline", "train_pipeline", "val_pipeline"}
# The registry of a dict by its key or path; elsewhere a type is looked up in all of them.
_MODELS: tuple[str, ...] = ("data_preprocessor", "student", "teacher", "backbone", "neck")
_MODELS += ("head", "bbox_head", "roi_head", "rpn_head")
REGISTRY_OF_KEY = {
    **dict.fromkeys(_MODELS, "model"),
    "dataset": "dataset",
    "model.method": "method",
    "optim_wrapper": "optim_wrapper",
    "optimizer": "optimizer",
    "param_scheduler": "parameter scheduler",
    "pipeline": "transform",
    "vis_backends": "vis_backend",
    **{
        f"{split}_dataloader.{key}": registry
        for split in ("train", "val", "test")
        for key, registry in (
            ("batch_sampler", "data sampler"),
            ("collate_fn", "function"),
            ("sampler", "data sampler"),
        )
    },
}
TOP_REGISTRIES = {
    **dict.fromkeys(("custom_hooks", "default_hooks"), "hook"),
    **dict.fromkeys(("train_cfg", "val_cfg", "test_cfg"), "loop"),
    **dict.fromkeys(("val_evaluator", "test_evaluator"), "evaluation"),
    "log_processor": "log_processor",
    "model": "model",
    "vis_backends": "vis_backend",
    "visualizer": "visualizer",
}
# What these hold is for another library.
FOREIGN = {"Albu", "Detectron2Wrapper"}

_Side = Union[PositiveFloat, Sequence[PositiveFloat]]
_Fractions = Union[Fraction, Sequence[Fraction]]
_DETECTION_SETTINGS: dict[str, Any] = {
    "allowed_border": int,
    "assigner": dict,
    "debug": bool,
    "iou_threshold": Fraction,
    "mask_size": object,
    "mask_thr_binary": float,
    "max_per_image": int,
    "max_per_img": int,
    "min_bbox_size": NonNegativeFloat,
    "nms": Optional[dict],
    "nms_pre": int,
    "pos_weight": float,
    "rcnn": Union[dict, Sequence[dict], None],
    "rpn": Union[dict, Sequence[dict], None],
    "rpn_proposal": dict,
    "sampler": dict,
    "score_thr": Fraction,
}
# Dicts without a class, by their key: what they take.
SECTIONS: dict[str, dict[str, Any]] = {
    "auto_scale_lr": {"base_batch_size": PositiveInt, "enable": bool},
    "clip_grad": {
        "clip_value": PositiveFloat,
        "error_if_nonfinite": bool,
        "foreach": Optional[bool],
        "max_norm": PositiveFloat,
        "norm_type": PositiveFloat,
        "type": Literal["norm", "value"],
    },
    "data_prefix": {"img": str, "img_path": str, "seg": str},
    "default_hooks": dict.fromkeys(
        (
            "checkpoint",
            "config_check",
            "finite_check",
            "logger",
            "param_scheduler",
            "progress",
            "runtime_info",
            "sampler_seed",
            "stopped_workers",
            "timer",
            "visualization",
        ),
        Optional[dict],
    ),
    "dist_cfg": {"backend": str, "timeout": PositiveFloat},
    "env_cfg": {
        "cudnn_benchmark": bool,
        "dist_cfg": dict,
        "mp_cfg": dict,
        "resource_limit": PositiveInt,
    },
    "filter_cfg": {"filter_empty_gt": bool, "min_size": NonNegativeInt},
    "metainfo": {"classes": Union[str, Sequence[str], None], "palette": object},
    "mp_cfg": {
        "mp_start_method": Literal["fork", "spawn", "forkserver"],
        "opencv_num_threads": NonNegativeInt,
    },
    "nms": {"iou_threshold": Fraction, "type": str},
    "randomness": {
        "deterministic": bool,
        "diff_rank_seed": bool,
        "seed": Optional[NonNegativeInt],
    },
    "roi_layer": {"output_size": Union[int, Sequence[int]], "sampling_ratio": int, "type": str},
    **dict.fromkeys(("rcnn", "rpn", "rpn_proposal", "test_cfg", "train_cfg"), _DETECTION_SETTINGS),
}
# Of the default constructor of optimizer wrappers.
PARAMWISE: dict[str, Any] = {
    "base_lr": PositiveFloat,
    "bias_decay_mult": NonNegativeFloat,
    "bias_lr_mult": NonNegativeFloat,
    "bypass_duplicate": bool,
    "custom_keys": dict,
    "dcn_offset_lr_mult": NonNegativeFloat,
    "dwconv_decay_mult": NonNegativeFloat,
    "flat_decay_mult": NonNegativeFloat,
    "norm_decay_mult": NonNegativeFloat,
}
# The `data` of a user's config.
DATA: dict[str, Any] = {
    "classes": Union[str, Sequence[str]],
    "format": str,
    "root": str,
    "test": Union[str, dict],
    "train": Union[str, dict],
    "val": Union[str, dict],
    "val_share": Fraction,
}
# In others than these, keys that are not above are legal too, unless they are nearly one of them.
CLOSED_SECTIONS = {"auto_scale_lr", "clip_grad", "env_cfg", "mp_cfg", "randomness"}
# Keys of the top level beside the Runner's arguments.
TOP_TYPES: dict[str, Any] = {
    "classes": Union[str, Sequence[str]],
    "custom_imports": Optional[dict],
    "data_root": Optional[str],
    "method_options": Optional[dict],
    "published": Optional[dict],
    "settings": str,
}
# In place of types in signatures that are wrong, by class and argument.
HINTS: dict[str, dict[str, Any]] = {
    "AmpOptimWrapper": {"loss_scale": Union[PositiveFloat, Literal["dynamic"], dict]},
    "MultiImageMixDataset": {"pipeline": Sequence[dict]},
    "YOLOFHead": {"in_channels": PositiveInt},
}
# Besides types in signatures, by registry and argument.
RANGES: dict[str, dict[str, Any]] = {
    "data loader": {
        "batch_size": PositiveInt,
        "drop_last": bool,
        "num_workers": NonNegativeInt,
        "persistent_workers": bool,
        "pin_memory": bool,
        "prefetch_factor": Optional[PositiveInt],
        "timeout": NonNegativeFloat,
    },
    "hook": {
        "begin_epoch": NonNegativeInt,
        "begin_iter": NonNegativeInt,
        "interval": PositiveInt,
        "momentum": Fraction,
        "priority": Union[int, str],
    },
    "dataset": {
        "ann_file": Union[str, Sequence[str]],
        "data_root": Optional[str],
        "metainfo": Optional[dict],
    },
    "log_processor": {"window_size": PositiveInt},
    "loop": {
        "max_epochs": PositiveInt,
        "max_iters": PositiveInt,
        "val_begin": PositiveInt,
        "val_interval": PositiveInt,
    },
    "metric": {
        "ann_file": Optional[str],
        "topk": Union[PositiveInt, Sequence[PositiveInt]],
    },
    "model": {
        "base_channels": PositiveInt,
        "depth": PositiveInt,
        "in_channels": Union[PositiveInt, Sequence[PositiveInt]],
        "label_smooth_val": Fraction,
        "loss_weight": NonNegativeFloat,
        "num_classes": PositiveInt,
        "num_outs": PositiveInt,
        "out_channels": Union[PositiveInt, Sequence[PositiveInt]],
        "requires_grad": bool,
        "std": Sequence[PositiveFloat],
        "stem_channels": Optional[PositiveInt],
    },
    "optim_wrapper": {
        "accumulative_counts": PositiveInt,
        "clip_grad": Optional[dict],
        "optimizer": dict,
        "paramwise_cfg": Optional[dict],
    },
    "optimizer": {
        "betas": Sequence[Fraction],
        "eps": NonNegativeFloat,
        "lr": PositiveFloat,
        "momentum": Fraction,
        "weight_decay": NonNegativeFloat,
    },
    "parameter scheduler": {
        "T_max": Optional[PositiveInt],
        "begin": NonNegativeInt,
        "convert_to_iter_based": bool,
        "end": PositiveInt,
        "end_factor": Fraction,
        "eta_min": NonNegativeFloat,
        "factor": Fraction,
        "gamma": PositiveFloat,
        "milestones": Sequence[PositiveInt],
        "power": PositiveFloat,
        "start_factor": Fraction,
        "step_size": PositiveInt,
    },
    "transform": {
        "erase_prob": Fraction,
        "prob": _Fractions,
        "scale": Union[PositiveFloat, Sequence[_Side]],
        "scales": Sequence[_Side],
    },
}
# Dicts that may have no type: whoever builds them has a default.
UNTYPED = {
    "data_preprocessor",
    "default_hooks",
    "log_processor",
    "optim_wrapper",
    "test_cfg",
    "train_cfg",
    "val_cfg",
}
