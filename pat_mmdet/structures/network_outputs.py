"""What a method sees of a network: its outputs in a step, and its shapes at build time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from torch import Tensor


@dataclass
class NetworkOutputs:
    """Outputs of one network on one batch.

    Attributes:
        features (Sequence[Tensor]): Maps (B, C, H, W) from shallow to deep: the levels of the
            feature pyramid in detection, the outputs of the stages in classification.
        logits (Tensor, optional): (N, K) class scores. In detection N sampled RoIs or locations
            and K classes with background last.
        embedding (Tensor, optional): (N, D) features that the classifier gets, a row for each of
            the logits.
        labels (Tensor, optional): (N,) int64 class indices.
        soft_labels (Tensor, optional): (N, K) class probabilities, where images were mixed.
        indices (Tensor, optional): (B,) int64, the place of each image in the data set.
    """

    features: Sequence[Tensor] = field(default_factory=tuple)
    logits: Tensor | None = None
    embedding: Tensor | None = None
    labels: Tensor | None = None
    soft_labels: Tensor | None = None
    indices: Tensor | None = None


@dataclass(frozen=True)
class FeatureSpec:
    """Shapes of one network, found by a dry run on an image of the configured input size.

    Attributes:
        features (tuple): (C, H, W) of each feature map, from shallow to deep.
        num_classes (int, optional): Width of the logits, if the method reads any.
        embedding (int, optional): Width of the embedding, if the method reads it.
        tokens (bool): Whether the features come from tokens and have one fixed size.
        stage_inputs (tuple): (C, H, W) entering each stage of the backbone, where a prompt can
            be added. Empty for a student.
        stage_features (tuple): For each stage the index of the feature map nearest to its output
            in size.
    """

    features: tuple[tuple[int, int, int], ...]
    num_classes: int | None = None
    embedding: int | None = None
    tokens: bool = False
    stage_inputs: tuple[tuple[int, int, int], ...] = ()
    stage_features: tuple[int, ...] = ()
