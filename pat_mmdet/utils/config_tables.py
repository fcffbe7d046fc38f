"""What is known of the configs of MMEngine, MMDetection, mmpretrain and torch beyond signatures.

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
# The registry of a dict by its key; elsewhere a type is looked up in all of them.
REGISTRY_OF_KEY = {
    "data_preprocessor": "model",
    "dataset": "dataset",
    "method": "method",
    "optim_wrapper": "optim_wrapper",
    "optimizer": "optimizer",
    "param_scheduler": "parameter scheduler",
    "pipeline": "transform",
    "student": "model",
    "teacher": "model",
    "backbone": "model",
    "neck": "model",
    "head": "model",
    "bbox_head": "model",
    "roi_head": "model",
    "rpn_head": "model",
    "sampler": None,  # of a data loader, or of the boxes of a head
}
TOP_REGISTRIES = {
    "custom_hooks": "hook",
    "default_hooks": "hook",
    "log_processor": "log_processor",
    "model": "model",
    "test_cfg": "loop",
    "test_evaluator": "evaluation",
    "train_cfg": "loop",
    "val_cfg": "loop",
    "val_evaluator": "evaluation",
    "vis_backends": "vis_backend",
    "visualizer": "visualizer",
}
# What these hold is for another library.
FOREIGN = {"Albu", "Detectron2Wrapper"}

_Side = Union[PositiveFloat, Sequence[PositiveFloat]]
_Fractions = Union[Fraction, Sequence[Fraction]]
_DETECTION_SETTINGS: dict[str, Any] = {
    "allowed_border": int,
    "assigner": object,
    "debug": bool,
    "iou_threshold": Fraction,
    "mask_size": object,
    "mask_thr_binary": float,
    "max_per_image": int,
    "max_per_img": int,
    "min_bbox_size": NonNegativeFloat,
    "nms": object,
    "nms_pre": int,
    "pos_weight": float,
    "rcnn": object,
    "rpn": object,
    "rpn_proposal": object,
    "sampler": object,
    "score_thr": object,
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
    "env_cfg": {
        "cudnn_benchmark": bool,
        "dist_cfg": dict,
        "mp_cfg": dict,
        "resource_limit": PositiveInt,
    },
    "filter_cfg": {"filter_empty_gt": bool, "min_size": NonNegativeInt},
    "metainfo": {"classes": object, "palette": object},
    "mp_cfg": {
        "mp_start_method": Literal["fork", "spawn", "forkserver"],
        "opencv_num_threads": NonNegativeInt,
    },
    "randomness": {
        "deterministic": bool,
        "diff_rank_seed": bool,
        "seed": Optional[NonNegativeInt],
    },
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
# In these other keys are legal too, unless they are nearly one of those above.
OPEN_SECTIONS = {
    "data_prefix",
    "filter_cfg",
    "metainfo",
    "rcnn",
    "rpn",
    "rpn_proposal",
    "test_cfg",
    "train_cfg",
}
# In place of the types in signatures, by registry and argument.
RANGES: dict[str, dict[str, Any]] = {
    "data loader": {
        "batch_size": PositiveInt,
        "num_workers": NonNegativeInt,
        "prefetch_factor": Optional[PositiveInt],
        "timeout": NonNegativeFloat,
    },
    "hook": {
        "begin_epoch": NonNegativeInt,
        "begin_iter": NonNegativeInt,
        "interval": PositiveInt,
        "momentum": Fraction,
    },
    "dataset": {"pipeline": Sequence[dict]},
    "log_processor": {"window_size": PositiveInt},
    "loop": {
        "max_epochs": PositiveInt,
        "max_iters": PositiveInt,
        "val_begin": PositiveInt,
        "val_interval": PositiveInt,
    },
    "metric": {"topk": Union[PositiveInt, Sequence[PositiveInt]]},
    "model": {
        "in_channels": Union[PositiveInt, Sequence[PositiveInt]],
        "loss_weight": NonNegativeFloat,
        "num_classes": PositiveInt,
        "num_outs": PositiveInt,
        "out_channels": Union[PositiveInt, Sequence[PositiveInt]],
        "std": Sequence[PositiveFloat],
    },
    "optim_wrapper": {
        "accumulative_counts": PositiveInt,
        "loss_scale": Union[PositiveFloat, Literal["dynamic"], dict],
    },
    "optimizer": {
        "betas": Sequence[Fraction],
        "eps": NonNegativeFloat,
        "lr": PositiveFloat,
        "momentum": Fraction,
        "weight_decay": NonNegativeFloat,
    },
    "parameter scheduler": {
        "T_max": PositiveInt,
        "begin": NonNegativeInt,
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
