"""Drawing predictions of classifiers on the images as they are in their files."""

from __future__ import annotations

import os
from collections.abc import Sequence

import mmcv
from mmengine.registry import HOOKS
from mmpretrain.engine.hooks import VisualizationHook
from mmpretrain.structures import DataSample

from pat_mmdet.datasets.transforms.loading import read_image

_MIN_SIDE = 224  # pixels of the drawn image, below which its text cannot be read


@HOOKS.register_module()
class ImageFileVisualizationHook(VisualizationHook):
    """A ``VisualizationHook`` that reads images from their files and keeps all of them.

    The inputs of the network are resized images, or several views of one with test-time
    augmentation. Files begin with the index of the sample, as images of different folders may have
    the same name. Those that cannot be read are left out: the dataset has reported them.
    """

    def _draw_samples(
        self,
        batch_idx: int,
        data_batch: dict,
        data_samples: Sequence[DataSample],
        step: int = 0,
    ) -> None:
        """Draw every ``interval``-th sample."""
        if not self.enable:
            return
        for sample in data_samples:
            if sample.sample_idx % self.interval:
                continue
            # Test-time augmentation averages the scores and leaves the label of the first view.
            sample.set_pred_label(sample.pred_score.argmax(-1))
            image = read_image(sample.img_path)
            if image is None:
                continue
            name = f"{sample.sample_idx:05d}_{os.path.basename(sample.img_path)}"
            if self.out_dir is not None:
                self.draw_args["out_file"] = os.path.join(self.out_dir, name)
            self._visualizer.visualize_cls(
                mmcv.bgr2rgb(image),
                sample,
                resize=max(min(image.shape[:2]), _MIN_SIDE),
                name=name,
                step=step,
                **self.draw_args,
            )
