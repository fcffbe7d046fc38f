"""Writes a trained student as weights and a config that plain MMDetection or mmpretrain runs.

The weights of a timm student also load with ``timm.create_model(..., checkpoint_path=...)``.
"""

import argparse
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope

from pat_mmdet.cli.arguments import add_cfg_options
from pat_mmdet.datasets import CheckedCocoDataset, LoadImageOrSkip
from pat_mmdet.engine.hooks import (
    DistillWeightHook,
    SafeCheckpointHook,
    StudentEMAHook,
    TolerantVisualizationHook,
)
from pat_mmdet.engine.runner import ResumableEpochBasedTrainLoop, ResumableIterBasedTrainLoop
from pat_mmdet.models.backbones import HeadlessMobileNetV2
from pat_mmdet.utils import load_config, load_weights, read_checkpoint, student_model
from pat_mmdet.utils.errors import clear_errors

PLAIN_NAMES = {
    "PretrainedTimmClassifier": "TimmClassifier",
    **{
        cls.__name__: cls.__mro__[1].__name__
        for cls in (
            CheckedCocoDataset,
            HeadlessMobileNetV2,
            LoadImageOrSkip,
            ResumableEpochBasedTrainLoop,
            ResumableIterBasedTrainLoop,
            SafeCheckpointHook,
            StudentEMAHook,
            TolerantVisualizationHook,
        )
    },
}


def parse_args() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of the config the student was trained with")
    parser.add_argument("checkpoint", help="checkpoint of the training")
    parser.add_argument("out", help="file for the weights (.pth); the config goes beside it (.py)")
    add_cfg_options(parser)
    args = parser.parse_args()
    if not args.out.endswith(".pth"):
        parser.error("OUT must end with .pth")
    return args


def plain_config(cfg: Config) -> Config:
    """Turns a config of this project into one of plain MMDetection.

    Args:
        cfg (Config): Config of a distiller, or of a student alone.

    Returns:
        Config: The student's, in which classes of this project are replaced by those they extend.
    """
    plain = cfg.to_dict()
    plain["model"] = student_model(cfg).to_dict()
    imports = plain.pop("custom_imports", {}).get("imports", [])
    others = [module for module in imports if module.split(".")[0] != "pat_mmdet"]
    if others:
        plain["custom_imports"] = dict(imports=others)
    # It has no meaning without a method.
    hooks = plain.get("custom_hooks", [])
    plain["custom_hooks"] = [item for item in hooks if item["type"] != DistillWeightHook.__name__]
    return Config(_plain(plain))


def _plain(value: object) -> object:
    if isinstance(value, dict):
        node = {key: _plain(item) for key, item in value.items()}
        if isinstance(node.get("type"), str):
            node["type"] = PLAIN_NAMES.get(node["type"], node["type"])
        if node.get("type") == "TimmClassifier" and "model_name" in node:
            # Only there, as detection does without timm.
            from pat_mmdet.models.backbones.timm_swin import plain_settings

            node.update(plain_settings(node["model_name"]), pretrained=False)
        return node
    if isinstance(value, (list, tuple)):
        return type(value)(_plain(item) for item in value)
    return value


def main() -> None:
    """Exports as the command line says."""
    args = parse_args()
    with clear_errors():
        cfg = load_config(args.config, args.cfg_options)
        init_default_scope(cfg.get("default_scope", "mmdet"))
        student = MODELS.build(student_model(cfg))
        load_weights(student, args.checkpoint, allow_unused=("distill.",))
        meta = read_checkpoint(args.checkpoint).get("meta", {})
    out = Path(args.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    torch.save(
        dict(
            meta=dict(dataset_meta=meta.get("dataset_meta", dict(classes=cfg.get("classes")))),
            state_dict=student.state_dict(),
        ),
        out,
    )
    plain_config(cfg).dump(out.with_suffix(".py"))
    print(f"weights: {out}\nconfig:  {out.with_suffix('.py')}")


if __name__ == "__main__":
    main()
