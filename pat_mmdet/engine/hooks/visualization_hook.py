"""Visualization of predictions on data with unreadable images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import mmcv
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmengine.fileio import get
from mmengine.registry import HOOKS
from mmengine.runner import Runner


@HOOKS.register_module()
class TolerantVisualizationHook(DetVisualizationHook):
    """A ``DetVisualizationHook`` that leaves out images which cannot be read.

    The dataset has skipped and reported them; this hook reads the files again.
    """

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        """Draw the first image of the batch that can be read."""
        readable = self._readable(outputs)
        if readable:
            super().after_val_iter(runner, batch_idx, data_batch, readable)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        """Draw the images of the batch that can be read."""
        super().after_test_iter(runner, batch_idx, data_batch, self._readable(outputs))

    def _readable(self, outputs: Sequence[DetDataSample]) -> list[DetDataSample]:
        """Return the samples whose images can be read; none where nothing is drawn."""
        if not self.draw:
            return []
        return [sample for sample in outputs if self._read(sample.img_path) is not None]

    def _read(self, path: str) -> Any:
        """Read an image; return None if that fails."""
        try:
            return mmcv.imfrombytes(get(path, backend_args=self.backend_args))
        except Exception:
            # Whatever is wrong with the file, the dataset has reported it.
            return None
