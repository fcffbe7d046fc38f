"""Replacement of layers by numerically equivalent faster ones: the switch for all of them.

A layer is replaced by changing its class to a subclass with another ``forward``: weights, their
names and hooks stay.
"""

from __future__ import annotations

from collections import Counter

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from pat_mmdet.models.acceleration.fused_hcl_loss import FastHierarchicalContextLoss
from pat_mmdet.models.acceleration.onednn import ONEDNN_AVAILABLE, onednn_linear
from pat_mmdet.models.acceleration.utils import mix_in
from pat_mmdet.models.acceleration.window_attention import (
    FastShiftWindowMSA,
    FastSwinTransformerBlock,
)

# Up to this width the memory traffic of a product counts, not its arithmetic.
_NARROW = 64
# Up to so many positions a convolution is slower than a product of all its windows.
_FEW_WINDOWS = 36


class FastLinear:
    """``nn.Linear`` by oneDNN's matrix product, in full precision on a CPU."""

    @staticmethod
    def obstacle(module: nn.Module) -> str | None:
        """Return why the module cannot be replaced, None if it can."""
        return None if ONEDNN_AVAILABLE else f"torch {torch.__version__} has no oneDNN product"

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., in_features) to (..., out_features)."""
        if x.dim() == 3 and x.stride(1) == 1 < x.stride(2) and self.in_features <= _NARROW:
            # A transposed input: the output is transposed too, so that neither is copied.
            x, weight = x.transpose(1, 2), self.weight.expand(len(x), -1, -1)
            if self.bias is None:
                return torch.bmm(weight, x).transpose(1, 2)
            return torch.baddbmm(self.bias[:, None], weight, x).transpose(1, 2)
        return onednn_linear(x, self.weight, self.bias)


class FastConv2d:
    """``nn.Conv2d`` on few windows that do not overlap, as one matrix product.

    Convolution routines are made for small kernels on large maps. The patch embeddings of
    region-aware attention have kernels up to 40×40 and 25 windows, the prompts one window of 5×5.
    Other inputs take the convolution.
    """

    @staticmethod
    def obstacle(module: nn.Module) -> str | None:
        """Return why the module cannot be replaced, None if it can."""
        if module.groups > 1 or module.dilation != (1, 1) or module.padding != (0, 0):
            return "it has groups, dilation or padding"
        return None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H', W')."""
        (height, width), kernel = x.shape[-2:], self.kernel_size
        rows, columns = height // kernel[0], width // kernel[1]
        disjoint = self.stride == kernel or rows == columns == 1
        whole = x.dim() == 4 and (height, width) == (rows * kernel[0], columns * kernel[1])
        if not (disjoint and whole and rows * columns <= _FEW_WINDOWS):
            return super().forward(x)
        x = x.unflatten(3, (columns, kernel[1])).unflatten(2, (rows, kernel[0]))
        windows = x.permute(0, 2, 4, 1, 3, 5).flatten(3)
        return onednn_linear(windows, self.weight.flatten(1), self.bias).permute(0, 3, 1, 2)


_FAST_LAYERS = {
    "torch.nn.modules.linear.Linear": FastLinear,
    "torch.nn.modules.conv.Conv2d": FastConv2d,
    "mmcv.cnn.bricks.wrappers.Linear": FastLinear,
    "mmdet.models.backbones.swin.ShiftWindowMSA": FastShiftWindowMSA,
    "mmpretrain.models.utils.attention.ShiftWindowMSA": FastShiftWindowMSA,
    "timm.models.swin_transformer.SwinTransformerBlock": FastSwinTransformerBlock,
    "pat_mmdet.models.losses.hcl_loss.HierarchicalContextLoss": FastHierarchicalContextLoss,
}


def use_fast_layers(*networks: nn.Module) -> None:
    """Replace supported layers by numerically equivalent faster ones, in place.

    One line of the log says how many layers of which class were replaced, and why others of these
    classes were not. Unknown layers are left unchanged.

    Args:
        networks (nn.Module): The networks. Window attention is replaced in frozen ones only.
    """
    summaries = []
    for network in networks:
        name = type(network).__name__
        replaced: Counter[str] = Counter()
        left: Counter[str] = Counter()
        for module in network.modules():
            cls = type(module)
            form = _FAST_LAYERS.get(f"{cls.__module__}.{cls.__qualname__}")
            if form is None:
                continue
            obstacle = form.obstacle(module)
            if obstacle is None:
                mix_in(form, module, "Fast")
                replaced[cls.__name__] += 1
            else:
                left[f"{cls.__name__} ({obstacle})"] += 1
        summary = f"{name}: {_listed(replaced) or 'none'}"
        summaries.append(summary + (f" (not replaced: {_listed(left)})" if left else ""))
    print_log(f"layers replaced by faster ones: {'; '.join(summaries)}", "current")


def _listed(counts: Counter[str]) -> str:
    """Return counts as a phrase: "2 Conv2d, 3 Linear"."""
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
