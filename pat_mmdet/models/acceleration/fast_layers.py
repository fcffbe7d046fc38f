"""Layers of a frozen network in faster forms, which compute the same to rounding.

What depends on the weights or on the size of the image alone is computed once, as the weights do
not change any more: the bias and the masks of window attention, and where each window lies.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pat_mmdet.models.acceleration.onednn import onednn_linear

# Positions of the tokens of so many batch and map sizes are kept.
_PLANS = 64
# What Swin adds to the scores of tokens that were no neighbours before the shift.
_MASKED = -100.0


def use_fast_layers(network: nn.Module) -> None:
    """Puts faster forms in place of the layers of a network that has them.

    Weights and their names stay. They must not be trained any more.

    Args:
        network (nn.Module): The frozen network, changed in place.
    """
    for module in network.modules():
        cls = type(module)
        form = _FAST_LAYERS.get(f"{cls.__module__.partition('.')[0]}.{cls.__name__}")
        if form is not None:
            module.__class__ = type(f"Frozen{cls.__name__}", (form, cls), {})


class _FrozenLinear:
    """A linear layer by oneDNN's matrix product, in full precision on a CPU."""

    def forward(self, x: Tensor) -> Tensor:
        return onednn_linear(x, self.weight, self.bias)


class _Plan(NamedTuple):
    """Where the tokens of a batch of maps go when the maps are cut into windows.

    Attributes:
        take (Tensor): For each place in the windows the token that goes there, 0 for padding.
        put (Tensor): For each token its place in the windows.
        padding (Tensor): Places without a token.
        groups (list[tuple[int, int]]): Kinds of mask, and how many windows of each stand together.
    """

    take: Tensor
    put: Tensor
    padding: Tensor
    groups: list[tuple[int, int]]


@lru_cache(_PLANS)
@torch.no_grad()
def _plan(
    size: tuple[int, int, int],
    window: tuple[int, int],
    shift: tuple[int, int],
    pad_first: bool,
    device: torch.device,
) -> _Plan:
    """Plans the windows of maps of a size (B, H, W).

    Args:
        size: Of the batch.
        window: Height and width of a window.
        shift: By which the maps are rolled towards the top left.
        pad_first: Whether maps are padded before they are rolled (MMDetection) or after (timm).
        device: Of the result.
    """
    batch, height, width = size
    token = torch.arange(batch * height * width).view(batch, height, width)
    back = (-shift[0], -shift[1])
    pad = (0, -width % window[1], 0, -height % window[0])
    if pad_first:
        token = F.pad(token, pad, value=-1).roll(back, (1, 2))
    else:
        token = F.pad(token.roll(back, (1, 2)), pad, value=-1)
    token = token.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0])).transpose(2, 3)
    rows, columns = token.shape[1:3]
    # Only windows at the lower and right edge hold tokens from two sides of the map.
    lower = torch.arange(rows)[:, None] == rows - 1 if shift[0] else torch.zeros(1, 1)
    right = torch.arange(columns) == columns - 1 if shift[1] else torch.zeros(1)
    kind = (2 * lower.long() + right.long()).expand(batch, rows, columns).flatten()
    take = token.reshape(len(kind), -1)[kind.argsort(stable=True)].flatten()
    put = torch.empty(batch * height * width, dtype=torch.long)
    places = torch.arange(len(take))
    put[take[take >= 0]] = places[take >= 0]
    counts = kind.bincount(minlength=4).tolist()
    return _Plan(
        take.clamp(min=0).to(device),
        put.to(device),
        places[take < 0].to(device),
        [(kind, count) for kind, count in enumerate(counts) if count],
    )


class _Rearranged(torch.autograd.Function):
    """Puts tokens (L, C) into windows, or back; each way is the other's gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, plan: _Plan, back: bool) -> Tensor:
        ctx.plan, ctx.back = plan, back
        return _rearrange(x, plan, back)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _rearrange(gradient, ctx.plan, not ctx.back), None, None


def _rearrange(x: Tensor, plan: _Plan, back: bool) -> Tensor:
    if back:
        return x.index_select(0, plan.put)
    windows = x.index_select(0, plan.take)
    return windows.index_fill_(0, plan.padding, 0) if len(plan.padding) else windows


def _window_attention(
    x: Tensor,
    attention: nn.Module,
    window: tuple[int, int],
    shift: tuple[int, int],
    pad_first: bool,
) -> Tensor:
    """Attention in windows of normalised maps (B, H, W, C), by the fused kernel of torch.

    Args:
        x: Maps.
        attention: The module with ``qkv``, ``proj``, ``num_heads`` and the table of biases.
        window: Height and width of a window.
        shift: By which windows are shifted.
        pad_first: As for :func:`_plan`.

    Returns:
        Maps of the same shape.
    """
    plan = _plan(tuple(x.shape[:3]), window, shift, pad_first, x.device)
    tokens = _Rearranged.apply(x.reshape(-1, x.shape[3]), plan, False)
    area = window[0] * window[1]
    qkv = attention.qkv(tokens).view(
        -1, area, 3, attention.num_heads, x.shape[3] // attention.num_heads
    )
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    bias = _bias(attention, window, shift).to(query.dtype)
    mixed, begin = [], 0
    for kind, count in plan.groups:
        part = slice(begin, begin + count)
        out = F.scaled_dot_product_attention(
            query[part], key[part], value[part], attn_mask=bias[kind : kind + 1]
        )
        mixed.append(out.transpose(1, 2).reshape(-1, x.shape[3]))
        begin += count
    tokens = attention.proj(mixed[0] if len(mixed) == 1 else torch.cat(mixed))
    return _Rearranged.apply(tokens, plan, True).view(x.shape)


@torch.no_grad()
def _bias(attention: nn.Module, window: tuple[int, int], shift: tuple[int, int]) -> Tensor:
    """What is added to the scores, (4, heads, N, N), by the kind of the window.

    Kinds are inner windows, those at the right edge, those at the lower edge, and the corner.
    """
    table = attention.relative_position_bias_table
    version = (table.data_ptr(), table._version, window, shift)
    kept = getattr(attention, "_kept_bias", None)
    if kept is None or kept[0] != version:
        area = window[0] * window[1]
        position = table[attention.relative_position_index.view(-1)].view(area, area, -1)
        kinds = torch.arange(4, device=table.device)[:, None, None]
        row = torch.arange(window[0], device=table.device)[:, None] >= window[0] - shift[0]
        column = torch.arange(window[1], device=table.device) >= window[1] - shift[1]
        side = ((kinds // 2) * row + (kinds % 2) * 2 * column).flatten(1)
        mask = _MASKED * (side[:, :, None] != side[:, None, :])
        kept = (version, position.permute(2, 0, 1) + mask[:, None])
        attention._kept_bias = kept
    return kept[1]


class _FrozenWindows:
    """``ShiftWindowMSA`` of MMDetection and mmpretrain."""

    def forward(self, query: Tensor, hw_shape: tuple[int, int]) -> Tensor:
        size, shift = self.window_size, self.shift_size
        if hasattr(self, "pad_small_map") and min(hw_shape) <= size:
            # mmpretrain's does not shift what is one window, and does not take less unasked.
            if not self.pad_small_map and min(hw_shape) < size:
                return super().forward(query, hw_shape)
            shift = shift if self.pad_small_map else 0
        maps = query.unflatten(1, tuple(hw_shape))
        out = _window_attention(maps, self.w_msa, (size, size), (shift, shift), pad_first=True)
        return out.flatten(1, 2)


class _FrozenTimmWindows:
    """``SwinTransformerBlock`` of timm."""

    def _attn(self, x: Tensor) -> Tensor:
        return _window_attention(
            x, self.attn, tuple(self.window_size), tuple(self.shift_size), pad_first=False
        )


_FAST_LAYERS = {
    "torch.Linear": _FrozenLinear,
    "mmcv.Linear": _FrozenLinear,
    "mmdet.ShiftWindowMSA": _FrozenWindows,
    "mmpretrain.ShiftWindowMSA": _FrozenWindows,
    "timm.SwinTransformerBlock": _FrozenTimmWindows,
}
