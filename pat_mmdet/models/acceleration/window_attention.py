"""Window attention of frozen Swin transformers, by gathers and the fused kernel of torch.

Everything that depends on the weights or the map size alone is computed once, because the weights
do not change: position biases, masks, and the indices of the windows.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Swin adds this to the scores of tokens that were not neighbours before the shift.
_MASKED = -100.0
# A network has two kinds of windows (shifted or not) in four stages. The indices of one image of
# 800x1216 take 4 MiB over all of them.
_CACHED_SIZES = 8 * 32
_CACHED_BATCHES = 8 * 4


class WindowIndices(NamedTuple):
    """Gather and scatter indices of (shifted) window partitioning.

    Windows that need the same mask lie side by side.

    Attributes:
        gather_index (Tensor): Token at each position in the windows, shape (positions,); 0 for
            padding.
        scatter_index (Tensor): Position of each token, shape (tokens,).
        padding (Tensor): Positions without a token.
        num_windows (tuple[int, ...]): Number of windows for each of the four masks, see
            :func:`_attention_bias`.
    """

    gather_index: Tensor
    scatter_index: Tensor
    padding: Tensor
    num_windows: tuple[int, ...]


@lru_cache(_CACHED_SIZES)
@torch.no_grad()
def image_window_indices(
    size: tuple[int, int],
    window: tuple[int, int],
    shift: tuple[int, int],
    pad_first: bool,
    device: torch.device,
) -> WindowIndices:
    """Return the indices of the windows of one map.

    Args:
        size (tuple[int, int]): Height and width of the map.
        window (tuple[int, int]): Height and width of a window.
        shift (tuple[int, int]): Rows and columns by which the map is rolled to the top left.
        pad_first (bool): Whether the map is padded before it is rolled (MMDetection) or after
            (timm).
        device (torch.device): Device of the result.

    Returns:
        WindowIndices: The indices.
    """
    height, width = size
    num_tokens = height * width
    tokens = torch.arange(num_tokens, device=device).view(size)
    roll = dict(shifts=(-shift[0], -shift[1]), dims=(0, 1))
    pad = dict(pad=(0, -width % window[1], 0, -height % window[0]), value=num_tokens)
    tokens = F.pad(tokens, **pad).roll(**roll) if pad_first else F.pad(tokens.roll(**roll), **pad)
    windows = tokens.unflatten(1, (-1, window[1])).unflatten(0, (-1, window[0])).transpose(1, 2)
    # After a shift only the windows at the lower and right edge hold tokens from two sides.
    rows = windows.split([len(windows) - 1, 1]) if shift[0] else (windows, windows[:0])
    by_mask = [
        part
        for row in rows
        for part in (row.split([row.shape[1] - 1, 1], 1) if shift[1] else (row, row[:, :0]))
    ]
    gather_index = torch.cat([part.flatten() for part in by_mask])
    positions = torch.arange(len(gather_index), device=device)
    # The last entry takes the padding.
    scatter_index = positions.new_empty(num_tokens + 1)
    scatter_index[gather_index] = positions
    is_padding = gather_index == num_tokens
    return WindowIndices(
        gather_index.masked_fill(is_padding, 0),
        scatter_index[:-1],
        positions[is_padding],
        tuple(part.shape[0] * part.shape[1] for part in by_mask),
    )


@lru_cache(_CACHED_BATCHES)
@torch.no_grad()
def batch_window_indices(
    batch_size: int, size: tuple[int, int], window: tuple[int, int], *args: Any
) -> WindowIndices:
    """Return the indices of the windows of a batch of maps.

    Each window is followed by the same window of the next image.

    Args:
        batch_size (int): Number of maps.
        size (tuple[int, int]): As in :func:`image_window_indices`.
        window (tuple[int, int]): As there.
        *args (Any): The other arguments of :func:`image_window_indices`.

    Returns:
        WindowIndices: The indices into the tokens of all maps, image after image.
    """
    indices = image_window_indices(size, window, *args)
    area = window[0] * window[1]
    image = torch.arange(batch_size, device=indices.gather_index.device)[:, None]

    def in_batch(position: Tensor) -> Tensor:
        first = position - position % area
        return (position + first * (batch_size - 1) + image * area).flatten()

    gather_index = indices.gather_index.view(-1, 1, area) + image * (size[0] * size[1])
    return WindowIndices(
        gather_index.flatten(),
        in_batch(indices.scatter_index),
        in_batch(indices.padding),
        tuple(batch_size * count for count in indices.num_windows),
    )


class _WindowPermutation(torch.autograd.Function):
    """Move tokens (L, C) into windows, or back; each direction is the gradient of the other."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, indices: WindowIndices, reverse: bool) -> Tensor:
        ctx.indices, ctx.reverse = indices, reverse
        return _permute(x, indices, reverse)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _permute(gradient, ctx.indices, not ctx.reverse), None, None


def _permute(x: Tensor, indices: WindowIndices, reverse: bool) -> Tensor:
    """Gather the tokens of the windows, with zeros for padding, or the tokens of the maps."""
    if reverse:
        return x.index_select(0, indices.scatter_index)
    windows = x.index_select(0, indices.gather_index)
    return windows.index_fill_(0, indices.padding, 0) if len(indices.padding) else windows


def _window_attention(
    x: Tensor,
    attention: nn.Module,
    window: tuple[int, int],
    shift: tuple[int, int],
    pad_first: bool,
) -> Tensor:
    """Compute attention in windows.

    Args:
        x (Tensor): Normalised maps, shape (B, H, W, C).
        attention (nn.Module): Module with the attributes of :data:`_ATTENTION`.
        window (tuple[int, int]): Height and width of a window.
        shift (tuple[int, int]): Rows and columns by which the windows are shifted.
        pad_first (bool): As in :func:`image_window_indices`.

    Returns:
        Tensor: Maps of the same shape.
    """
    batch_size, height, width, channels = x.shape
    indices = batch_window_indices(batch_size, (height, width), window, shift, pad_first, x.device)
    tokens = _WindowPermutation.apply(x.reshape(-1, channels), indices, False)
    area, head_dim = window[0] * window[1], _head_dim(attention)
    qkv = attention.qkv(tokens).view(-1, area, 3, attention.num_heads, head_dim)
    bias = _attention_bias(attention, window, shift).to(qkv.dtype)
    mixed = [
        F.scaled_dot_product_attention(*part.permute(2, 0, 3, 1, 4).unbind(), attn_mask=mask[None])
        for part, mask in zip(qkv.split(indices.num_windows), bias)
        if len(part)
    ]
    mixed = [part.transpose(1, 2).flatten(2).flatten(0, 1) for part in mixed]
    tokens = attention.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed))
    return _WindowPermutation.apply(tokens, indices, True).view(x.shape)


@torch.no_grad()
def _attention_bias(
    attention: nn.Module, window: tuple[int, int], shift: tuple[int, int]
) -> Tensor:
    """Return position biases plus masks, cached until the table of biases changes.

    Args:
        attention (nn.Module): Module with the table of biases.
        window (tuple[int, int]): Height and width of a window.
        shift (tuple[int, int]): Rows and columns by which the windows are shifted.

    Returns:
        Tensor: Addends to the scores, shape (4, heads, N, N): of inner windows, and of those at
            the right edge, at the lower edge and in the corner, which a shift fills from two sides.
    """
    table = attention.relative_position_bias_table
    version = (table.data_ptr(), table._version, window, shift)
    cached = getattr(attention, "_cached_bias", None)
    if cached is None or cached[0] != version:
        area = window[0] * window[1]
        position = table[attention.relative_position_index.view(-1)].view(area, area, -1)
        edge = torch.arange(4, device=table.device)[:, None, None]
        row = torch.arange(window[0], device=table.device)[:, None] >= window[0] - shift[0]
        column = torch.arange(window[1], device=table.device) >= window[1] - shift[1]
        side = ((edge // 2) * row + (edge % 2) * 2 * column).flatten(1)
        mask = _MASKED * (side[:, :, None] != side[:, None, :])
        cached = (version, position.permute(2, 0, 1) + mask[:, None])
        attention._cached_bias = cached
    return cached[1]


# What :func:`_window_attention` reads from the attention module.
_ATTENTION = (
    "qkv",
    "proj",
    "num_heads",
    "scale",
    "relative_position_bias_table",
    "relative_position_index",
)


def _obstacle(block: nn.Module, *attributes: str) -> str | None:
    """Return why the attention of a block cannot be replaced, None if it can."""
    attention = getattr(block, attributes[0], None)
    missing = [name for name in attributes if not hasattr(block, name)]
    missing += [f"{attributes[0]}.{name}" for name in _ATTENTION if not hasattr(attention, name)]
    if missing:
        return f"it has no {missing[0]}"
    if attention.relative_position_bias_table.requires_grad:
        return "it is not frozen"
    if attention.scale != _head_dim(attention) ** -0.5:
        return f"it scales queries by {attention.scale}"
    return None


def _head_dim(attention: nn.Module) -> int:
    """Return the channels of a head."""
    return attention.qkv.out_features // (3 * attention.num_heads)


class FastShiftWindowMSA:
    """``ShiftWindowMSA`` of MMDetection and mmpretrain."""

    @staticmethod
    def obstacle(module: nn.Module) -> str | None:
        """Return why the module cannot be replaced, None if it can."""
        return _obstacle(module, "w_msa", "window_size", "shift_size")

    def forward(self, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        """Return tokens of the shape of ``query`` (B, H·W, C)."""
        size, shift = self.window_size, self.shift_size
        if hasattr(self, "pad_small_map") and min(hw_shape) <= size:
            # mmpretrain does not shift a single window, and refuses smaller maps unless asked.
            if not self.pad_small_map and min(hw_shape) < size:
                return super().forward(query, hw_shape)
            shift = shift if self.pad_small_map else 0
        maps = query.unflatten(1, tuple(hw_shape))
        out = _window_attention(maps, self.w_msa, (size, size), (shift, shift), pad_first=True)
        return out.flatten(1, 2)


class FastSwinTransformerBlock:
    """``SwinTransformerBlock`` of timm."""

    @staticmethod
    def obstacle(module: nn.Module) -> str | None:
        """Return why the module cannot be replaced, None if it can."""
        return _obstacle(module, "attn", "_attn", "window_size", "shift_size")

    def _attn(self, x: Tensor) -> Tensor:
        return _window_attention(
            x, self.attn, tuple(self.window_size), tuple(self.shift_size), pad_first=False
        )
