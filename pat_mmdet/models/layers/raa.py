"""Region-aware attention (RAA) of PAT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def sinusoidal_positions(length: int, dim: int) -> Tensor:
    """Return sinusoidal encodings of the positions 0 to ``length - 1``.

    Args:
        length (int): Number of positions.
        dim (int): Width of an encoding; an odd width has one sine more than cosines.

    Returns:
        Tensor: Float32 encodings, shape (1, length, dim): sines at even, cosines at odd channels,
            the wavelengths growing geometrically from 2π to 10000·2π.
    """
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    table = torch.empty(length, dim, dtype=torch.float32)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate[: dim // 2])
    return table[None]


class RegionAwareAttention(nn.Module):
    """Attention between the regions of all student stages.

    Each stage map is cut into ``grid`` × ``grid`` regions, a patch embedding makes one token of
    each, and self-attention mixes the tokens of all stages, so that a region of the student can
    use the receptive field that the teacher has there. Source: PAT paper, section "Region-Aware
    Attention".

    Parameter shapes depend on ``sizes``; in the forward pass maps may have any size and aspect
    ratio, because each is resized to the size that its patch embedding covers.

    Args:
        channels (Sequence[int]): Channels of the stage maps, one entry per stage.
        sizes (Sequence[tuple[int, int]]): Their (height, width) at the input size of the build.
            The patches are square, and their side is ``ceil(height / grid)``.
        grid (int): Regions along each side of a map.
        dim (int): Width of a token.
        num_heads (int): Attention heads.

    Raises:
        ValueError: If ``dim`` is not divisible by ``num_heads``, or ``channels`` and ``sizes``
            describe different numbers of stages.
    """

    def __init__(
        self,
        channels: Sequence[int],
        sizes: Sequence[tuple[int, int]],
        grid: int = 5,
        dim: int = 64,
        num_heads: int = 8,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(
                f"dim={dim} cannot be split into {num_heads} heads: choose a dim that is a "
                f"multiple of num_heads, such as {-(-dim // num_heads) * num_heads}"
            )
        if len(channels) != len(sizes):
            raise ValueError(
                f"{len(channels)} channel counts but {len(sizes)} sizes: give one of each per stage"
            )
        self.grid = grid
        self.dim = dim
        self.num_heads = num_heads
        patches = [-(-height // grid) for height, _ in sizes]
        self.embeds = nn.ModuleList(
            nn.Conv2d(width, dim, kernel_size=patch, stride=patch)
            for width, patch in zip(channels, patches)
        )
        self.norm = nn.LayerNorm(dim)
        self.query = nn.Linear(dim, dim)
        self.key = nn.Linear(dim, dim)
        self.value = nn.Linear(dim, dim)
        positions = sinusoidal_positions(len(patches) * grid**2, dim)
        self.register_buffer("positions", positions, persistent=False)

    def _tokens(self, embed: nn.Conv2d, feature: Tensor) -> Tensor:
        """Embed the regions of one stage: (B, C, H, W) -> (B, grid², dim)."""
        side = self.grid * embed.kernel_size[0]
        if tuple(feature.shape[-2:]) != (side, side):
            feature = F.interpolate(
                feature, size=(side, side), mode="bilinear", align_corners=False
            )
        return embed(feature).flatten(2).transpose(1, 2)

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """Split tokens (B, N, dim) into (B, heads, N, dim / heads)."""
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def _project(self, features: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values of all regions, each (B, heads, N, dim / heads).

        Arguments and errors as in :meth:`forward`.
        """
        if len(features) != len(self.embeds):
            raise ValueError(
                f"got {len(features)} feature maps for {len(self.embeds)} stages: pass one map "
                "for each entry of `channels`, or build RegionAwareAttention for these stages"
            )
        tokens = torch.cat(
            [self._tokens(embed, feature) for embed, feature in zip(self.embeds, features)], dim=1
        )
        tokens = self.norm(tokens)
        query, key, value = self.query(tokens), self.key(tokens), self.value(tokens)
        # In float32 they would widen queries and keys under autocast, only to be halved again.
        positions = self.positions.to(query.dtype)
        return (
            self._split_heads(query + positions),
            self._split_heads(key + positions),
            self._split_heads(value),
        )

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Mix the regions of all stages.

        Args:
            features (Sequence[Tensor]): Stage maps of the student, each (B, C_i, H_i, W_i), from
                shallow to deep.

        Returns:
            list[Tensor]: One map (B, dim, grid, grid) per stage.

        Raises:
            ValueError: If the number of maps is not the number of stages.
        """
        mixed = F.scaled_dot_product_attention(*self._project(features))
        mixed = mixed.transpose(1, 2).flatten(2)
        maps = mixed.unflatten(1, (len(self.embeds), self.grid, self.grid)).permute(1, 0, 4, 2, 3)
        return list(maps.unbind(0))

    def attention(self, features: Sequence[Tensor]) -> Tensor:
        """Return the weights with which :meth:`forward` mixes the regions, for figures.

        Args:
            features (Sequence[Tensor]): As in :meth:`forward`.

        Returns:
            Tensor: (B, heads, S, grid, grid, S, grid, grid) of S stages: the last three dimensions
            are the regions that the region of the three before them attends to, and sum to 1.
        """
        query, key, _ = self._project(features)
        weights = (query @ key.transpose(2, 3) / query.shape[-1] ** 0.5).softmax(-1)
        regions = (len(self.embeds), self.grid, self.grid)
        return weights.unflatten(3, regions).unflatten(2, regions)
