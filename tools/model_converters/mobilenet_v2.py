"""Convert MobileNetV2 ImageNet weights in torchvision's layout to MMDetection's backbone.

The names of the source do not matter, only the order and shapes of its tensors, which are those of
torchvision's ``features``. A classifier at the end is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pat_mmdet.cli.arguments import add_traceback
from pat_mmdet.utils.errors import clear_errors

if TYPE_CHECKING:
    from torch import Tensor


def convert(source: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename tensors by their order.

    Args:
        source (dict[str, Tensor]): Weights in torchvision's order.

    Returns:
        dict[str, Tensor]: Weights by MMDetection's names.

    Raises:
        ValueError: If a tensor is missing or has another shape.
    """
    from mmdet.models.backbones import MobileNetV2

    # Counters of batches are not in every source, and nothing reads them.
    source, target = (
        {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
        for state in (source, MobileNetV2().state_dict())
    )
    if len(source) < len(target):
        raise ValueError(
            f"the source has {len(source)} tensors, MobileNetV2's features have {len(target)}; "
            "give the weights of a MobileNetV2 of width 1.0 in torchvision's order"
        )
    for (old, value), (new, like) in zip(source.items(), target.items()):
        if value.shape != like.shape:
            raise ValueError(
                f"{old} has the shape {tuple(value.shape)}, {new} has {tuple(like.shape)}; the "
                "source is not a MobileNetV2 of width 1.0 in torchvision's order"
            )
    return dict(zip(target, source.values()))


def main() -> None:
    """Convert a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="file with a state dict")
    parser.add_argument("out", help="file for the converted weights")
    add_traceback(parser)
    args = parser.parse_args()

    import torch

    from pat_mmdet.utils import read_checkpoint

    with clear_errors(args.traceback):
        source = read_checkpoint(args.source)
        weights = convert(source.get("state_dict", source))
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(state_dict=weights), args.out)
    print(f"{len(weights)} tensors: {args.out}")


if __name__ == "__main__":
    main()
