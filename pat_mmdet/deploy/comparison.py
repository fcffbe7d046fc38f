"""Comparison of an exported network with the one in PyTorch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from mmdet.models.detectors import BaseDetector
from mmdet.structures import DetDataSample
from mmengine.config import Config
from mmengine.dataset import Compose, pseudo_collate
from scipy.optimize import linear_sum_assignment
from torch import nn

from pat_mmdet.deploy.graphs import detection_cfg
from pat_mmdet.deploy.preprocessing import read_image
from pat_mmdet.deploy.runtime import Detections, OnnxClassifier, OnnxDetector
from pat_mmdet.utils.config import is_rgb

BOX_TOLERANCE = 1e-3  # pixels
SCORE_TOLERANCE = 1e-5
# Boxes that are further apart, in pixels, are different detections.
_MATCH_DISTANCE = 1.0


class SplitPipeline:
    """The test pipeline of a config, in two parts.

    Args:
        cfg (Config): Config with a ``test_dataloader``.

    Attributes:
        load (Compose): Reads the image; empty if the data set holds its images in memory.
        prepare (Compose): All other steps.
    """

    def __init__(self, cfg: Config) -> None:
        steps = cfg.test_dataloader.dataset.pipeline
        count = int(not is_rgb(cfg))
        self.load, self.prepare = Compose(steps[:count]), Compose(steps[count:])
        self._order = -1 if is_rgb(cfg) else 1

    def from_pixels(self, image: np.ndarray) -> dict:
        """Return what :attr:`load` would, of pixels (H, W, 3), uint8, BGR."""
        shape = image.shape[:2]
        image = image[..., :: self._order]
        return dict(
            img=image, img_shape=shape, ori_shape=shape, img_path="", img_id=0, sample_idx=0
        )

    def to_pixels(self, results: dict) -> np.ndarray:
        """Return the pixels (H, W, 3), uint8, BGR, of what :attr:`load` returned."""
        return results["img"][..., :: self._order]


class Difference(NamedTuple):
    """How far two predictions for an image are apart.

    Attributes:
        name (str): What was predicted.
        num_predictions (int): Detections of the network in PyTorch, or images classified.
        boxes (float, optional): Largest difference of a coordinate, in pixels; None for classes.
        scores (float): Largest difference of a score.
        unmatched (int): Detections that only one of the networks has.
    """

    name: str
    num_predictions: int
    boxes: float | None
    scores: float
    unmatched: int

    def __str__(self) -> str:
        """Format as a line of a report."""
        if self.boxes is None:
            return f"{self.name}: probabilities {self.scores:.1e}"
        missing = f", {self.unmatched} WITHOUT A PARTNER" if self.unmatched else ""
        return (
            f"{self.name}: {self.num_predictions} detections, boxes {self.boxes:.1e} px, "
            f"scores {self.scores:.1e}{missing}"
        )

    @property
    def is_small(self) -> bool:
        """bool: Whether the predictions agree."""
        return (
            (self.boxes or 0.0) <= BOX_TOLERANCE
            and self.scores <= SCORE_TOLERANCE
            and not self.unmatched
        )


def compare(
    content: bytes, model: nn.Module, cfg: Config, image: str | Path
) -> Iterator[Difference]:
    """Compare a network in ONNX with the one that it was exported from.

    An image is predicted through the test pipeline and through the runtime's own steps. Besides, a
    detector gets it in two other sizes, and a classifier three images at once.

    Args:
        content (bytes): Content of the ONNX file.
        model (nn.Module): The network, on the CPU in eval mode.
        cfg (Config): Its config.
        image (str | Path): Path of the image.

    Yields:
        Difference: Of one prediction.

    Raises:
        FileNotFoundError: If there is no such image.
        ValueError: If it cannot be read, or the runtime's steps make other pixels of it.
    """
    kind = OnnxDetector if isinstance(model, BaseDetector) else OnnxClassifier
    exported = kind(content, num_threads=torch.get_num_threads())
    original = read_image(image)
    pipeline = SplitPipeline(cfg)
    batch = pseudo_collate([pipeline.prepare(pipeline.from_pixels(original))])
    pixels = exported.preprocess(original)
    inputs = torch.from_numpy(pixels.astype(np.uint8))
    if is_rgb(cfg):
        inputs = inputs.flip(1)
    if not torch.equal(inputs[0], batch["inputs"][0]):
        raise ValueError(
            f"the test pipeline makes other pixels of {str(image)!r} than the runtime's steps; "
            "see with --image if another image has them too"
        )
    name = Path(image).name
    if isinstance(exported, OnnxClassifier):
        yield _compare_scores(name, predict_scores(model, batch), exported(image)[None])
        several = np.concatenate([pixels, pixels[:, :, ::-1], pixels[..., ::-1]])
        inputs = torch.cat([inputs, inputs.flip(2), inputs.flip(3)])
        scores = predict_scores(model, dict(inputs=list(inputs)))
        yield _compare_scores("3 at once", scores, exported.infer(several)[0])
        return

    settings = detection_cfg(model)
    limits = (settings.score_thr, settings.max_per_img)
    yield compare_detections(name, predict_detections(model, batch), exported(image), *limits)
    height, width = pixels.shape[2:]
    for size in ((height * 3 // 4, width), (width, height * 5 // 8)):
        resized = torch.from_numpy(cv2.resize(original, size[::-1])).permute(2, 0, 1)
        sample = DetDataSample(
            metainfo=dict(img_shape=size, ori_shape=size, scale_factor=(1.0, 1.0), img_id=0)
        )
        expected = predict_detections(model, dict(inputs=[resized], data_samples=[sample]))
        actual = Detections(*exported.infer(resized[None].float().numpy()))
        yield compare_detections(f"{size[0]} x {size[1]}", expected, actual, *limits)


def predict_detections(model: nn.Module, batch: dict) -> Detections:
    """Run a detector of MMDetection on a batch of one image, as a data loader gives it."""
    with torch.no_grad():
        found = model.test_step(batch)[0].pred_instances
    return Detections(*(item.numpy() for item in (found.bboxes, found.scores, found.labels)))


def predict_scores(model: nn.Module, batch: dict) -> np.ndarray:
    """Return the probabilities (B, K) of a classifier of mmpretrain."""
    with torch.no_grad():
        return torch.stack([sample.pred_score for sample in model.test_step(batch)]).numpy()


def compare_detections(
    name: str, expected: Detections, actual: Detections, threshold: float, limit: int
) -> Difference:
    """Match detections one to one, and measure how far they are apart.

    Detections at the threshold, up to the tolerance of scores, may be missing. Where there are as
    many detections as allowed, the threshold is the lowest score among them.

    Args:
        name (str): What was predicted.
        expected (Detections): Detections of the network in PyTorch.
        actual (Detections): Detections of the exported network.
        threshold (float): Score below which detections are dropped.
        limit (int): Largest number of detections.

    Returns:
        Difference: The difference.
    """
    boxes = np.abs(expected.boxes[:, None] - actual.boxes[None]).max(-1)
    scores = np.abs(expected.scores[:, None] - actual.scores[None])
    is_match = (expected.labels[:, None] == actual.labels[None]) & (boxes < _MATCH_DISTANCE)
    # Scores are at most 1 apart.
    rows, columns = linear_sum_assignment(np.where(is_match, boxes + scores, 1e6))
    matched = is_match[rows, columns]
    rows, columns = rows[matched], columns[matched]
    unmatched = 0
    for found, places in ((expected, rows), (actual, columns)):
        at_limit = found.scores.min() if len(found.scores) >= limit else threshold
        left = np.delete(found.scores, places)
        unmatched += int((np.abs(left - at_limit) > SCORE_TOLERANCE).sum())
    return Difference(
        name,
        len(expected.scores),
        float(boxes[rows, columns].max(initial=0)),
        float(scores[rows, columns].max(initial=0)),
        unmatched,
    )


def _compare_scores(name: str, expected: np.ndarray, actual: np.ndarray) -> Difference:
    """Measure how far probabilities (B, K) are apart."""
    return Difference(name, len(expected), None, float(np.abs(expected - actual).max()), 0)
