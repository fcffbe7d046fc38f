"""Classifiers that go beyond those of mmpretrain."""

from __future__ import annotations

from mmengine.registry import MODELS
from mmpretrain.models import TimmClassifier


@MODELS.register_module()
class PretrainedTimmClassifier(TimmClassifier):
    """A ``TimmClassifier`` that keeps the weights with which timm made it.

    Those may be pretrained (``pretrained=True``, ``checkpoint_path=...``), and timm initialises the
    others itself; mmengine, however, would have it draw most of them anew before training.
    """

    def init_weights(self) -> None:
        """Leave the weights as they are."""
        self._is_init = True
