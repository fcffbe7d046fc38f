"""Convert Swin ImageNet weights to MMDetection's Swin backbone.

Both the official layout, which timm had up to 0.6, and that of timm 1.x are read; in the latter the
downsampling opens a layer instead of ending the one before. The result is for
``init_cfg=dict(type="Pretrained", checkpoint=OUT)`` with ``convert_weights=False``.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable
from math import isqrt
from pathlib import Path
from typing import TYPE_CHECKING

from pat_mmdet.cli.arguments import add_traceback
from pat_mmdet.utils.errors import clear_errors

if TYPE_CHECKING:
    from torch import Tensor, nn

BIAS_TABLE = r"layers\.(\d+)\.blocks\.\d+\.attn\.relative_position_bias_table"
DETECTRON2 = r"backbone\.(bottom_up|fpn_)|proposal_generator\.|roi_heads\."
# What to do with the weights of other networks, told by the start of a key; the first match counts.
HINTS = {
    DETECTRON2: (
        "it is a detectron2 network; convert a Faster R-CNN of it by "
        "tools/model_converters/detectron2_faster_rcnn.py"
    ),
    r"backbone\.layers\.\d+\.blocks\.": (
        "it is a detector of the Swin authors' own MMDetection; take a checkpoint of MMDetection's "
        "model zoo instead, which needs no conversion"
    ),
    r"(neck|rpn_head|roi_head|bbox_head)\.|(backbone\.)?stages\.\d+\.blocks\.\d+\.attn\.w_msa\.": (
        "it is a network of MMDetection; load it directly: a detector by load_from or "
        "teacher_checkpoint, a backbone by init_cfg=dict(type='Pretrained', checkpoint=...) with "
        "convert_weights=False"
    ),
    BIAS_TABLE: "it is a Swin Transformer; convert it by tools/model_converters/swin.py",
}


def read_weights(source: str) -> dict[str, Tensor]:
    """Read the weights of a file, which are under ``model``, under ``state_dict`` or on top.

    Args:
        source (str): Path or URL of the file.

    Returns:
        dict[str, Tensor]: Its tensors by key.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, or holds pickled objects.
    """
    from torch import Tensor

    from pat_mmdet.utils import read_checkpoint

    try:
        content = read_checkpoint(source)
    except ValueError as error:
        # The advice there is for files of MMDetection; in others the weights are under "model".
        raise ValueError(str(error).replace("'state_dict'", "'model'")) from None
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    return {str(key): value for key, value in content.items() if isinstance(value, Tensor)}


def first(names: Iterable[str], count: int = 5) -> str:
    """Return the first few names as text, ``'none'`` if there are none."""
    names = list(names)
    return ", ".join(names[:count]) + (", …" if len(names) > count else "") if names else "none"


def wrong_source(source: Iterable[str], wanted: str) -> ValueError:
    """Build the error about weights of another network.

    Args:
        source (Iterable[str]): Keys of the weights.
        wanted (str): What they should be.
    """
    for pattern, hint in HINTS.items():
        if any(re.match(pattern, key) for key in source):
            return ValueError(f"the source is not {wanted}: {hint}")
    return ValueError(f"the source is not {wanted}; its tensors are {first(source)}")


def convert_backbone(source: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Convert the tensors that MMDetection's backbone has too.

    The buffers of the attention are left out, which every network computes itself.

    Args:
        source (dict[str, Tensor]): Weights in the official layout or timm's.

    Returns:
        tuple[dict[str, Tensor], dict[str, object]]: Weights by MMDetection's names, which start
            with ``backbone.``, and the arguments of its ``SwinTransformer``.

    Raises:
        ValueError: If the source is another network.
    """
    from mmdet.models.backbones.swin import swin_converter

    # One row for each of the (2w - 1)² offsets in a window, one column for each head.
    tables: dict[int, list[Tensor]] = {}
    for key, value in source.items():
        if match := re.fullmatch(BIAS_TABLE, key):
            tables.setdefault(int(match[1]), []).append(value)
    if not tables:
        raise wrong_source(
            source, "a Swin Transformer (version 1) in the official layout or timm's"
        )
    if "patch_embed.proj.weight" not in source:
        raise ValueError("the source is incomplete: patch_embed.proj.weight is missing")
    mlp = next((v for key, v in source.items() if key.endswith(".mlp.fc1.weight")), None)
    settings = dict(
        embed_dims=len(source["patch_embed.proj.weight"]),
        depths=[len(tables[layer]) for layer in sorted(tables)],
        num_heads=[tables[layer][0].shape[1] for layer in sorted(tables)],
        window_size=(isqrt(len(tables[min(tables)][0])) + 1) // 2,
        mlp_ratio=4 if mlp is None else mlp.shape[0] // mlp.shape[1],
        qkv_bias=any(key.endswith(".attn.qkv.bias") for key in source),
        patch_norm="patch_embed.norm.weight" in source,
    )

    downsampling = {key: int(key.split(".")[1]) for key in source if ".downsample." in key}
    # The last layer is followed by no downsampling, and the first is preceded by none.
    is_timm = bool(downsampling) and 0 not in downsampling.values()
    official = {}
    for key, value in source.items():
        if re.match(r"norm\.|head\.|.*\.(relative_position_index|attn_mask)$", key):
            continue
        if is_timm and key in downsampling:
            layer = downsampling[key]
            key = key.replace(f"layers.{layer}.", f"layers.{layer - 1}.", 1)
        official[key] = value
    return swin_converter(official), settings


def fit(weights: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """Check that weights are all that a network needs, and add the buffers it computes itself.

    Args:
        weights (dict[str, Tensor]): Weights by the network's names.
        network (nn.Module): The network.

    Returns:
        dict[str, Tensor]: State of the network, in its order.

    Raises:
        ValueError: If tensors are missing, unknown, or of another shape.
    """
    state = network.state_dict()
    computed = {key: state[key] for key in state if key.endswith("relative_position_index")}
    weights = {**weights, **computed}
    missing = [key for key in state if key not in weights]
    unknown = [key for key in weights if key not in state]
    reshaped = [
        f"{key} {tuple(weights[key].shape)} instead of {tuple(value.shape)}"
        for key, value in state.items()
        if key in weights and weights[key].shape != value.shape
    ]
    if missing or unknown or reshaped:
        raise ValueError(
            f"the source does not fit MMDetection's network: {len(missing)} tensors are missing "
            f"({first(missing)}), {len(unknown)} unknown ({first(unknown)}), {len(reshaped)} of "
            f"another shape ({first(reshaped)})"
        )
    return {key: weights[key] for key in state}


def main() -> None:
    """Convert a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="file with the ImageNet weights (.pth)")
    parser.add_argument("out", help="file for the converted weights")
    add_traceback(parser)
    args = parser.parse_args()

    import torch
    from mmdet.models.backbones.swin import SwinTransformer

    with clear_errors(args.traceback):
        source = read_weights(args.source)
        weights, settings = convert_backbone(source)
        # Detectors normalise all levels instead of the last one: those norms start new.
        network = torch.nn.ModuleDict({"backbone": SwinTransformer(**settings, out_indices=())})
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
