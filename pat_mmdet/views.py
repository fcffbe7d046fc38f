"""What a method sees of a network: its outputs in a step, and its shapes at build time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class View:
    """Outputs of one network on one batch.

    Attributes:
        features (Sequence[Tensor]): Maps (B, C, H, W) from shallow to deep; in detection the
            levels of the feature pyramid.
        logits (Tensor, optional): (N, K) class scores. In detection N sampled RoIs and K
            classes with background last.
        embedding (Tensor, optional): (N, D) features that the classifier gets, a row for each of
            the logits.
        labels (Tensor, optional): (N,) int64 class indices.
    """

    features: Sequence[Tensor] = field(default_factory=tuple)
    logits: Tensor | None = None
    embedding: Tensor | None = None
    labels: Tensor | None = None


@dataclass(frozen=True)
class NetworkSpec:
    """Shapes of one network, found by a dry run on an image of the configured input size.

    Attributes:
        features (tuple): (C, H, W) of each feature map, from shallow to deep.
        num_classes (int): Width of the logits.
        embedding (int): Width of the embedding.
        stage_inputs (tuple): (C, H, W) entering each stage of the backbone, where a prompt can
            be added. Empty for a student.
    """

    features: tuple[tuple[int, int, int], ...]
    num_classes: int
    embedding: int
    stage_inputs: tuple[tuple[int, int, int], ...] = ()
