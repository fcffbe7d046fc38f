"""Outputs of a network in a step, and their shapes at build time."""

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
        logits (Tensor, optional): (N, K) class scores: of N images, or in detection of N RoIs or
            locations with background as the last class.
        embedding (Tensor, optional): (N, D) penultimate features, the input of the classifier.
        labels (Tensor, optional): (N,) int64 class indices.
        soft_labels (Tensor, optional): (N, K) class probabilities, where images were mixed.
        indices (Tensor, optional): (B,) int64 indices of the images in the data set.
    """

    features: Sequence[Tensor] = field(default_factory=tuple)
    logits: Tensor | None = None
    embedding: Tensor | None = None
    labels: Tensor | None = None
    soft_labels: Tensor | None = None
    indices: Tensor | None = None


@dataclass(frozen=True)
class FeatureSpec:
    """Shapes of the outputs of one network for an image of the configured ``input_size``.

    Attributes:
        features (tuple): (C, H, W) of each feature map, from shallow to deep.
        num_classes (int, optional): Width of the logits, if the method reads any.
        embedding (int, optional): Width of the embedding, if the method reads it.
        tokens (bool): Whether the features are tokens, whose number is fixed.
        stage_inputs (tuple): (C, H, W) of the input of each stage of the backbone, where a prompt
            is added. Empty for a student.
        stage_features (tuple): For each stage the index of the feature map nearest to its output
            in size.
    """

    features: tuple[tuple[int, int, int], ...]
    num_classes: int | None = None
    embedding: int | None = None
    tokens: bool = False
    stage_inputs: tuple[tuple[int, int, int], ...] = ()
    stage_features: tuple[int, ...] = ()
