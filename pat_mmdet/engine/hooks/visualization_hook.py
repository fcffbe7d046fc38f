"""Visualization of predictions on data with unreadable and turned images."""

from __future__ import annotations

import os
from collections.abc import Sequence

import mmcv
from mmdet.engine.hooks import DetVisualizationHook
from mmdet.structures import DetDataSample
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from pat_mmdet.datasets.transforms.loading import read_image


@HOOKS.register_module()
class TolerantVisualizationHook(DetVisualizationHook):
    """A ``DetVisualizationHook`` that draws images as the dataset has loaded them.

    Images that cannot be read are left out: the dataset has skipped and reported them. Images that
    were loaded as stored, see :class:`LoadImageOrSkip`, are drawn as stored.
    """

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        """Draw the first image of the batch that can be read, every ``interval`` iterations."""
        step = runner.iter + batch_idx
        if self.draw and step % self.interval == 0:
            for sample in outputs:
                if self._draw(sample, "val_img", step):
                    break

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict,
        outputs: Sequence[DetDataSample],
    ) -> None:
        """Draw the images of the batch that can be read."""
        if not self.draw:
            return
        folder = None
        if self.test_out_dir is not None:
            folder = os.path.join(runner.work_dir, runner.timestamp, self.test_out_dir)
        for sample in outputs:
            self._test_index += 1
            self._draw(sample, "test_img", self._test_index, folder)

    def _draw(self, sample: DetDataSample, name: str, step: int, folder: str | None = None) -> bool:
        """Draw an image with its predictions; return False if it cannot be read."""
        image = read_image(sample.img_path, sample.ori_shape, self.backend_args)
        if image is None:
            return False
        base = os.path.basename(sample.img_path)
        self._visualizer.add_datasample(
            base if self.show else name,
            mmcv.bgr2rgb(image),
            data_sample=sample,
            show=self.show,
            wait_time=self.wait_time,
            pred_score_thr=self.score_thr,
            out_file=None if folder is None else os.path.join(folder, base),
            step=step,
        )
        return True
