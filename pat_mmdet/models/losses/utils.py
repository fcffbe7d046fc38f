"""Shared by the losses: precision, checks of shapes, KL divergence."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

_Loss = TypeVar("_Loss", bound=Callable[..., Tensor])


def full_precision(loss: _Loss) -> _Loss:
    """Run ``loss`` without autocast, on tensors of at least float32."""

    def upcast(value: Any) -> Any:
        half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value

    @functools.wraps(loss)
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"
        with torch.autocast(device_type=device, enabled=False):
            return loss(*map(upcast, args), **{k: upcast(v) for k, v in kwargs.items()})

    return wrapper  # type: ignore[return-value]


def require(condition: bool, expected: str, s: Tensor, t: Tensor) -> None:
    """Raise a ValueError that names both shapes unless the condition holds."""
    if not condition:
        raise ValueError(
            f"expected {expected}, got student {tuple(s.shape)} and teacher {tuple(t.shape)}"
        )


def check_logits(s: Tensor, t: Tensor, target: Tensor | None = None) -> None:
    """Raise a ValueError unless the logits are (N, K) each and the target is (N,)."""
    require(s.ndim == 2 and s.shape == t.shape, "two (N, K) matrices of equal shape", s, t)
    if target is not None and target.shape != s.shape[:1]:
        # gather() accepts a target that is too short without a word.
        raise ValueError(
            f"expected class indices of shape {(len(s),)}, got target {tuple(target.shape)} "
            f"for logits {tuple(s.shape)}"
        )


def mean(x: Tensor) -> Tensor:
    """Return the mean over all elements; 0 instead of NaN where there is none."""
    return x.sum() / max(x.numel(), 1)


def kl_divergence(s: Tensor, t: Tensor) -> Tensor:
    """Return the batch mean of ``KL(softmax(t) ‖ softmax(s))`` for (N, K) logits."""
    kl = F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="sum", log_target=True)
    return kl / max(len(s), 1)
