"""Classifiers that go beyond those of mmpretrain."""

from __future__ import annotations

import os
from typing import Any

from mmengine.registry import MODELS
from mmpretrain.models import TimmClassifier


@MODELS.register_module()
class PretrainedTimmClassifier(TimmClassifier):
    """A ``TimmClassifier`` that keeps the weights with which timm made it.

    Those may be pretrained (``pretrained=True``, ``checkpoint_path=...``), and timm initialises the
    others itself; mmengine, however, would have it draw most of them anew before training.

    Args:
        *args: Arguments of ``TimmClassifier``.
        **kwargs: Arguments of ``TimmClassifier``.

    Raises:
        FileNotFoundError: If a file of weights does not exist.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        files = {"checkpoint_path": kwargs.get("checkpoint_path")}
        if kwargs.get("pretrained"):
            overlay = kwargs.get("pretrained_cfg_overlay") or {}
            files["pretrained_cfg_overlay.file"] = overlay.get("file")
        for name, file in files.items():
            if file and not os.path.isfile(file):  # of which timm would say nothing more
                raise FileNotFoundError(f"{name}={file!r} does not exist; check the path")
        super().__init__(*args, **kwargs)

    def init_weights(self) -> None:
        """Leave the weights as they are."""
        self._is_init = True
