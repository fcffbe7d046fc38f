"""Distillation losses as pure functions of tensors; nothing here knows a network or a config.

``s`` is the student's tensor, ``t`` the teacher's. Three rules hold for every function:

* Half precision inputs are upcast once and autocast is off inside, so that exponentials,
  logarithms and squares are float32 terms; float32 and float64 inputs keep their type.
* Nothing is detached except in :func:`ofa_loss`. Some methods train a layer on the teacher's side
  (CC, CRD), PAT trains prompts through it: whoever wants no gradient there detaches ``t``.
* An empty batch gives a zero that is still connected to its inputs, so that every parameter gets
  a gradient whatever was sampled.

None of them waits for the device: no ``.item()``, no branch on a value, no boolean indexing.
"""

from .channel_correlation_loss import (
    channel_correlation_loss,
    match_channel_statistics,
    spread_weights,
    standardize_channels,
)
from .correlation_loss import correlation_loss
from .crd_loss import crd_loss
from .dist_loss import dist_loss
from .dkd_loss import dkd_loss
from .hcl_loss import HierarchicalContextLoss, hcl_loss
from .kd_loss import kd_loss
from .ofa_loss import ofa_loss
from .rkd_loss import rkd_angle_loss, rkd_distance_loss

__all__ = [
    "HierarchicalContextLoss",
    "channel_correlation_loss",
    "correlation_loss",
    "crd_loss",
    "dist_loss",
    "dkd_loss",
    "hcl_loss",
    "kd_loss",
    "match_channel_statistics",
    "ofa_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "spread_weights",
    "standardize_channels",
]
