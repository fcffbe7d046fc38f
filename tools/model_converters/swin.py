"""Converts Swin ImageNet weights to MMDetection's Swin backbone.

It reads the official layout, which timm had up to 0.6 too, and timm 1.x's, where the downsampling
opens a layer instead of ending the one before. The result is for
``init_cfg=dict(type="Pretrained", checkpoint=OUT)`` with ``convert_weights=False``.
"""

import argparse
import re
from collections.abc import Iterable
from math import isqrt
from pathlib import Path

import torch
from mmdet.models.backbones.swin import SwinTransformer, swin_converter
from torch import Tensor, nn

from pat_mmdet.utils import read_checkpoint
from pat_mmdet.utils.errors import clear_errors

SWIN = "a Swin Transformer in the official layout or timm's"
DETECTRON2 = "a detectron2 network"
# What a file may hold, told by the start of any of its keys, and what to do with it then. The first
# that fits counts.
FAMILIES = {
    DETECTRON2: (
        r"backbone\.(bottom_up|fpn_)|proposal_generator\.|roi_heads\.",
        "convert a Faster R-CNN of it by tools/model_converters/detectron2_faster_rcnn.py",
    ),
    "a detector of the Swin authors' own MMDetection": (
        r"backbone\.layers\.\d+\.blocks\.",
        "take a checkpoint of MMDetection's model zoo instead, which needs no conversion",
    ),
    "a network of MMDetection": (
        r"(neck|rpn_head|roi_head|bbox_head)\.|(backbone\.)?stages\.\d+\.blocks\.\d+\.attn\.w_msa\.",
        "load it directly: a detector by load_from or teacher_checkpoint, a Swin backbone by "
        "init_cfg=dict(type='Pretrained', checkpoint=...) with convert_weights=False",
    ),
    "a Swin Transformer V2": (
        r"layers\.\d+\.blocks\.\d+\.attn\.(logit_scale|cpb_mlp)",
        "MMDetection has version 1 only; take weights of a Swin without V2",
    ),
    SWIN: (
        r"layers\.\d+\.blocks\.\d+\.attn\.relative_position_bias_table",
        "convert it by tools/model_converters/swin.py",
    ),
    "torchvision's Swin Transformer": (
        r"features\.\d+\.\d+\.attn\.",
        "take the official weights or those of timm",
    ),
    "a ViT": (
        r"cls_token|pos_embed|blocks\.\d+\.attn\.qkv\.",
        "take weights of a Swin Transformer",
    ),
    "a ResNet": (
        r"(backbone\.)?layer\d\.\d+\.conv1\.",
        "MMDetection's ResNet takes such weights directly, as init_cfg=dict(type='Pretrained', "
        "checkpoint='torchvision://resnet50')",
    ),
    "a MobileNetV2": (
        r"features\.0\.0\.weight",
        "convert it by tools/model_converters/mobilenet_v2.py",
    ),
}


def read_weights(source: str) -> dict[str, Tensor]:
    """Reads the weights of a file, which lie under ``model``, under ``state_dict`` or on top.

    Args:
        source (str): Path or URL of the file.

    Returns:
        dict[str, Tensor]: Its tensors by key.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or holds pickled objects.
    """
    try:
        content = read_checkpoint(source)
    except ValueError as error:
        # The advice there is for files of MMDetection; in others the weights lie under "model".
        raise ValueError(str(error).replace("'state_dict'", "'model'")) from None
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def check_family(source: Iterable[str], wanted: str) -> None:
    """Makes sure that weights are those of a family of networks.

    Args:
        source (Iterable[str]): Their keys.
        wanted (str): A key of ``FAMILIES``.

    Raises:
        ValueError: If they are of another family; what they are is said, and what to do.
    """
    keys = list(source)
    for family, (pattern, remedy) in FAMILIES.items():
        if any(re.match(pattern, key) for key in keys):
            if family == wanted:
                return
            raise ValueError(f"the source is {family}, not {wanted}; {remedy}")
    raise ValueError(f"the source is not {wanted}; its tensors are {first(keys)}")


def first(names: Iterable[str], count: int = 5) -> str:
    """Lists the first few names, or says that there is none."""
    names = list(names)
    return ", ".join(names[:count]) + (", …" if len(names) > count else "") if names else "none"


def convert_backbone(source: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Converts the tensors that MMDetection's backbone has too.

    The buffers of the attention are left out, which every network computes itself.

    Args:
        source (dict[str, Tensor]): Weights in the official layout or timm's.

    Returns:
        tuple: Weights by MMDetection's names, which start with ``backbone.``, and the arguments of
            its ``SwinTransformer`` that they are for.

    Raises:
        ValueError: If the source is another network, or one that MMDetection has not.
    """
    check_family(source, SWIN)
    if "absolute_pos_embed" in source:
        raise ValueError(
            "the source has an absolute position embedding (APE), which MMDetection cannot load; "
            "take one of the usual Swin Transformers, which have none"
        )
    layers = {key: int(key.split(".")[1]) for key in source if ".downsample." in key}
    # The last layer is followed by no downsampling, and the first is preceded by none.
    opens = bool(layers) and 0 not in layers.values()
    official = {}
    for key, value in source.items():
        if re.match(r"(norm|head)\.", key) or key.endswith(
            ("relative_position_index", "attn_mask")
        ):
            continue
        if opens and key in layers:
            key = key.replace(f"layers.{layers[key]}.", f"layers.{layers[key] - 1}.", 1)
        official[key] = value
    settings = _find_settings(official)
    return swin_converter(official), settings


def _find_settings(source: dict[str, Tensor]) -> dict[str, object]:
    """Finds the arguments of a ``SwinTransformer`` in its weights."""
    if "patch_embed.proj.weight" not in source:
        raise ValueError("the source is not whole: patch_embed.proj.weight is missing")
    # One row for each of the (2w - 1)² offsets in a window, and one column for each head.
    tables: dict[int, list[Tensor]] = {}
    ratio = 4
    for key, value in source.items():
        if key.endswith(".attn.relative_position_bias_table"):
            tables.setdefault(int(key.split(".")[1]), []).append(value)
        elif key.endswith(".mlp.fc1.weight"):
            ratio = value.shape[0] // value.shape[1]
    layers = [tables[layer] for layer in sorted(tables)]
    rows = [len(table) for layer in layers for table in layer]
    window = (isqrt(rows[0]) + 1) // 2
    if set(rows) != {(2 * window - 1) ** 2}:
        raise ValueError(
            f"the blocks' position tables have {rows} rows, so their windows are not all square "
            "and of one size as in MMDetection; take weights trained with larger images"
        )
    return dict(
        embed_dims=len(source["patch_embed.proj.weight"]),
        depths=[len(layer) for layer in layers],
        num_heads=[layer[0].shape[1] for layer in layers],
        window_size=window,
        mlp_ratio=ratio,
        qkv_bias=any(key.endswith(".attn.qkv.bias") for key in source),
        patch_norm="patch_embed.norm.weight" in source,
    )


def fit(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Checks that weights are all that a network needs, and adds the buffers it computes itself.

    Args:
        weights (dict[str, Tensor]): Weights by the network's names.
        network (nn.Module): The network.

    Returns:
        dict[str, Tensor]: The network's state, in its order.

    Raises:
        ValueError: If tensors are missing, unknown, or of another shape.
    """
    own = network.state_dict()
    computed = {key: own[key] for key in own if key.endswith("relative_position_index")}
    weights = {**weights, **computed}
    missing = [key for key in own if key not in weights]
    unknown = [key for key in weights if key not in own]
    reshaped = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in weights and weights[key].shape != own[key].shape
    ]
    if missing or unknown or reshaped:
        raise ValueError(
            f"the source does not fit MMDetection's network: {len(missing)} tensors are missing "
            f"({first(missing)}), {len(unknown)} unknown ({first(unknown)}), {len(reshaped)} of "
            f"another shape ({first(reshaped)})"
        )
    return {key: weights[key] for key in own}


def main() -> None:
    """Converts a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="file with the ImageNet weights (.pth)")
    parser.add_argument("out", help="file for the converted weights")
    args = parser.parse_args()
    with clear_errors():
        source = read_weights(args.source)
        weights, settings = convert_backbone(source)
        # Detectors normalise each of their levels instead of the last one alone, so these layers
        # start new.
        network = nn.ModuleDict({"backbone": SwinTransformer(**settings, out_indices=())})
        weights = fit(weights, network)
    Path(args.out).parent.mkdir(parents=True, exist_ok=True)
    torch.save(dict(state_dict=weights), args.out)
    head = sum(re.match(r"(norm|head)\.", key) is not None for key in source)
    print(
        f"{len(weights)} tensors: {args.out}\n"
        f"left out: {head} tensors of the ImageNet classifier and the norm before it, which a "
        "detector does not use\n"
        f"backbone: {', '.join(f'{key}={value}' for key, value in settings.items())}\n"
        f"load it by init_cfg=dict(type='Pretrained', checkpoint={args.out!r}) with "
        "convert_weights=False"
    )


if __name__ == "__main__":
    main()
