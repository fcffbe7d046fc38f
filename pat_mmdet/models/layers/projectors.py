"""Projections of student features to the shapes of the teacher's."""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn


class MapAligner(nn.Module):
    """Projection of the regions of one stage to the map of a convolutional teacher.

    The paper upsamples, normalises and convolves. Here the upsampling comes last: nearest
    upsampling only copies regions, and neither a per-channel norm nor a 1×1 convolution mixes
    positions, so the result is the same, while norm and convolution see, say, 25 positions instead
    of 60,000. In training, every region then has the same weight in the batch statistics; in the
    paper's order some are copied once more than others where the teacher's size is not a multiple
    of the grid. Source: PAT paper, section "Region-Aware Attention".

    Args:
        in_channels (int): Width of the region tokens.
        out_channels (int): Channels of the teacher's stage.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(in_channels)
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Project the regions of one stage.

        Args:
            x (Tensor): Region map, shape (B, in_channels, grid, grid).
            size (tuple[int, int]): (h, w) of the teacher's stage.

        Returns:
            Tensor: Map of shape (B, out_channels, h, w).
        """
        return F.interpolate(self.conv(self.norm(x)), size=tuple(size), mode="nearest")


class TokenAligner(nn.Module):
    """Projection of the regions of one stage to the tokens of a transformer or MLP teacher.

    A linear layer over the width and one over the tokens, each after a batch norm over the axis
    that it mixes. Source: PAT paper, section "Region-Aware Attention".

    Args:
        in_channels (int): Width of the region tokens.
        in_tokens (int): Number of regions of the stage.
        out_channels (int): Width of the teacher's tokens.
        out_size (tuple[int, int]): (h, w) of the grid that the teacher's tokens form.
    """

    def __init__(
        self, in_channels: int, in_tokens: int, out_channels: int, out_size: tuple[int, int]
    ) -> None:
        super().__init__()
        self.out_size = tuple(out_size)
        self.width_norm = nn.BatchNorm1d(in_channels)
        self.width = nn.Linear(in_channels, out_channels)
        self.token_norm = nn.BatchNorm1d(in_tokens)
        self.tokens = nn.Linear(in_tokens, self.out_size[0] * self.out_size[1])

    def forward(self, x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """Project the regions of one stage.

        Args:
            x (Tensor): Region map, shape (B, in_channels, grid, grid) with grid² = ``in_tokens``.
            size (tuple[int, int], optional): (h, w) of the teacher's stage, to be checked against
                the fixed ``out_size``.

        Returns:
            Tensor: The teacher's token grid as a map, shape (B, out_channels, h, w).

        Raises:
            ValueError: If ``size`` is not the ``out_size`` of the build.
        """
        if size is not None and tuple(size) != self.out_size:
            raise ValueError(
                f"TokenAligner was built for a teacher grid of {self.out_size}, not "
                f"{tuple(size)}: train at the configured input_size, or use MapAligner"
            )
        x = self.width_norm(x.flatten(2)).transpose(1, 2)
        x = self.token_norm(self.width(x))
        return self.tokens(x.transpose(1, 2)).unflatten(2, self.out_size)


def resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize bilinearly to (h, w), unless that is the size already."""
    if tuple(x.shape[-2:]) == tuple(size):
        return x
    return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


class ChannelProjector(nn.Module):
    """A 1×1 convolution where the numbers of channels differ, else the identity.

    Args:
        in_channels (int): Channels of the student's map.
        out_channels (int): Channels of the teacher's map.
        bias (bool): Whether the convolution has a bias.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True) -> None:
        super().__init__()
        same = in_channels == out_channels
        self.conv = nn.Identity() if same else nn.Conv2d(in_channels, out_channels, 1, bias=bias)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Project a student map.

        Args:
            x (Tensor): Student map, shape (B, in_channels, H, W).
            size (tuple[int, int]): (h, w) of the teacher's map.

        Returns:
            Tensor: Map of shape (B, out_channels, h, w), resized bilinearly where (H, W) differs.
        """
        return resize(self.conv(x), size)


class FeatureProjector(nn.Module):
    """FitNet's regressor: 1×1 convolution and batch norm, without ReLU as the targets are signed.

    The convolution has no bias, since the norm would remove it.

    Args:
        in_channels (int): Channels of the student's map.
        out_channels (int): Channels of the teacher's map.
        norm (bool): Whether there is a batch norm. A loss that standardises channels needs none.
        project (bool): Whether there is a convolution. Without one, channels stay what they are.
    """

    def __init__(
        self, in_channels: int, out_channels: int, norm: bool = True, project: bool = True
    ) -> None:
        super().__init__()
        self.conv = (
            nn.Conv2d(in_channels, out_channels, kernel_size=1, bias=False)
            if project
            else nn.Identity()
        )
        self.norm = nn.BatchNorm2d(out_channels) if norm else nn.Identity()

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Project a student map.

        Args:
            x (Tensor): Student map, shape (B, in_channels, H, W).
            size (tuple[int, int]): (h, w) of the teacher's map.

        Returns:
            Tensor: Map of shape (B, out_channels, h, w), resized bilinearly where (H, W) differs.
        """
        if isinstance(self.norm, nn.Identity) and math.prod(size) < x.shape[-2:].numel():
            # Without a norm both orders are equal, and the convolution sees fewer positions.
            return self.conv(resize(x, size))
        return resize(self.norm(self.conv(x)), size)
