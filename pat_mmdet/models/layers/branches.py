"""Auxiliary classifiers on stages of the student, for OFA."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Token grids are merged until their sides are at most this.
_GRID = 7


class MapBranch(nn.Module):
    """Auxiliary classifier on the map of a stage, for convolutional students.

    Depthwise separable convolutions of stride 2 halve the map to the size of the last stage, each
    doubling the channels; the last stage itself gets a 1×1 convolution. Source: Hao et al.,
    One-for-All, NeurIPS 2023, section 3.2.

    Args:
        channels (int): Channels of the stage.
        steps (int): How often the map is halved.
        out_channels (int): Width before the classifier.
        num_classes (int): Width of the logits.
    """

    def __init__(self, channels: int, steps: int, out_channels: int, num_classes: int) -> None:
        super().__init__()
        widths = [channels * 2**step for step in range(max(steps, 1))] + [out_channels]
        build = _separable if steps else _pointwise
        layers = [layer for pair in zip(widths, widths[1:]) for layer in build(*pair)]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(out_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) of a map (B, C, H, W)."""
        return self.classifier(self.layers(x).mean((2, 3)))


class TokenBranch(nn.Module):
    """Auxiliary classifier on the tokens of a stage, for transformer and MLP students.

    Patch merging reduces the grid to 7×7 tokens or less, transformer blocks follow, and the mean
    token is classified (features hold no class token). Source: Hao et al., One-for-All,
    NeurIPS 2023, section 3.2.

    Args:
        shape (tuple[int, int, int]): (C, H, W) of the stage.
        depth (int): Number of transformer blocks.
        out_channels (int): Width of the blocks.
        num_classes (int): Width of the logits.
        num_heads (int): Attention heads of a block.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        depth: int,
        out_channels: int,
        num_classes: int,
        num_heads: int = 4,
    ) -> None:
        super().__init__()
        channels, height, width = shape
        layers: list[nn.Module] = []
        while max(height, width) > _GRID:
            layers.append(PatchMerging(channels, out_channels))
            channels, height, width = out_channels, -(-height // 2), -(-width // 2)
        if channels != out_channels:
            layers.append(nn.Conv2d(channels, out_channels, kernel_size=1))
        self.merging = nn.Sequential(*layers)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(
                    out_channels,
                    num_heads,
                    dim_feedforward=4 * out_channels,
                    dropout=0.0,
                    activation="gelu",
                    batch_first=True,
                    norm_first=True,
                )
                for _ in range(depth)
            )
        )
        self.norm = nn.LayerNorm(out_channels)
        self.classifier = nn.Linear(out_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (B, num_classes) of a token grid as a map (B, C, H, W)."""
        tokens = self.merging(x).flatten(2).transpose(1, 2)
        return self.classifier(self.norm(self.blocks(tokens)).mean(1))


class PatchMerging(nn.Module):
    """Patch merging of Swin: concatenate 2×2 neighbours, normalise and project them.

    Args:
        in_channels (int): Channels of the grid.
        out_channels (int): Channels of the merged grid.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * in_channels)
        self.reduction = nn.Linear(4 * in_channels, out_channels, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Merge a map (B, C, H, W) into (B, out_channels, ⌈H/2⌉, ⌈W/2⌉)."""
        height, width = x.shape[2:]
        x = nn.functional.pad(x, (0, width % 2, 0, height % 2))
        x = torch.pixel_unshuffle(x, 2).permute(0, 2, 3, 1)
        return self.reduction(self.norm(x)).permute(0, 3, 1, 2)


def _normed(convolution: nn.Conv2d) -> list[nn.Module]:
    """Return a convolution with batch norm and ReLU."""
    return [convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU(inplace=True)]


def _pointwise(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Build a 1×1 convolution with batch norm and ReLU."""
    return _normed(nn.Conv2d(in_channels, out_channels, 1, bias=False))


def _separable(in_channels: int, out_channels: int) -> list[nn.Module]:
    """Build a depthwise 3×3 convolution of stride 2 and a 1×1 one, with batch norm and ReLU."""
    depthwise = nn.Conv2d(in_channels, in_channels, 3, 2, 1, groups=in_channels, bias=False)
    return [*_normed(depthwise), *_pointwise(in_channels, out_channels)]
