"""Region-aware attention (RAA) of PAT."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pat_mmdet.models.acceleration.onednn import onednn_linear


def sinusoidal_positions(length: int, dim: int) -> Tensor:
    """Sinusoidal encodings of the positions 0 to ``length - 1``.

    Args:
        length: Number of positions.
        dim: Width of an encoding; an odd width has one sine more than cosines.

    Returns:
        Float32 encodings, shape (1, length, dim): sines at even, cosines at odd channels, the
        wavelengths growing geometrically from 2π to 10000·2π.
    """
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = 10000.0 ** (-torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    table = torch.empty(length, dim, dtype=torch.float32)
    table[:, 0::2] = torch.sin(position * rate)
    table[:, 1::2] = torch.cos(position * rate[: dim // 2])
    return table[None]


class RegionAwareAttention(nn.Module):
    """Lets every region of every student stage look at all regions of all stages.

    Each stage map is cut into ``grid`` × ``grid`` regions, a patch embedding makes one token of
    each, and attention blends the tokens of all stages, so that a region of the student can draw
    on the receptive field that the teacher has there. Queries, keys and values all come from the
    student. Source: PAT paper, section "Region-Aware Attention".

    Parameter shapes depend on ``sizes``; at run time maps of any size and aspect ratio are taken,
    because each is resized to the size that its patch embedding covers.

    Args:
        channels: Channels of the stage maps, one entry per stage.
        sizes: Their (height, width), as seen with the input size of the build. The patches are
            square, and their side is ``ceil(height / grid)``.
        grid: Regions along each side of a map.
        dim: Width of a token.
        num_heads: Attention heads.

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
        """One token per region of one stage: (B, C, H, W) -> (B, grid², dim)."""
        patch = embed.kernel_size[0]
        side = self.grid * patch
        if tuple(feature.shape[-2:]) != (side, side):
            feature = F.interpolate(
                feature, size=(side, side), mode="bilinear", align_corners=False
            )
        # Patches do not overlap, so the convolution is one matrix product over cut patches.
        # Written so it is 2 to 3 times as fast on a CPU: kernels reach 40×40 in detection, far
        # from what convolution routines are made for.
        patches = feature.unflatten(3, (self.grid, patch)).unflatten(2, (self.grid, patch))
        patches = patches.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        return onednn_linear(patches, embed.weight.flatten(1), embed.bias)

    def _split_heads(self, tokens: Tensor) -> Tensor:
        """(B, N, dim) -> (B, heads, N, dim / heads)."""
        return tokens.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

    def forward(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Blends the regions of all stages.

        Args:
            features: Stage maps of the student, each (B, C_i, H_i, W_i), from shallow to deep.

        Returns:
            One map (B, dim, grid, grid) per stage.

        Raises:
            ValueError: If the number of maps is not the number of stages.
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
        query, key, value = (
            onednn_linear(tokens, layer.weight, layer.bias)
            for layer in (self.query, self.key, self.value)
        )
        # In float32 they would widen queries and keys under autocast, only to be halved again.
        positions = self.positions.to(query.dtype)
        mixed = F.scaled_dot_product_attention(
            self._split_heads(query + positions),
            self._split_heads(key + positions),
            self._split_heads(value),
        )
        mixed = mixed.transpose(1, 2).flatten(2)
        maps = mixed.unflatten(1, (len(self.embeds), self.grid, self.grid)).permute(1, 0, 4, 2, 3)
        return list(maps.unbind(0))
