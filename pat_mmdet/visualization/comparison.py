"""Evaluate networks on the same images, and put what sets them apart on one page."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import mmengine
import numpy as np
from mmdet.evaluation import CocoMetric
from mmengine.config import Config, ConfigDict
from mmengine.registry import METRICS, init_default_scope
from mmengine.runner import Runner
from torch.utils.data import Dataset

from pat_mmdet.datasets.transforms.loading import read_image
from pat_mmdet.evaluation.matching import FALSE, Boxes, match_boxes
from pat_mmdet.utils import load_weights, write_atomic
from pat_mmdet.version import __version__

from .page import COLORS, draw_curves, encode_image, render_page

_THRESHOLD = 0.3  # score from which on boxes are shown at first
_MIN_SCORE = 0.05  # boxes below are left out of the page
_TOP = 3  # classes that are shown of a classifier
# What of a config a test reads, besides the model. The rest (hooks, training) has no part in it.
_TEST_KEYS = (
    "data_preprocessor",
    "default_scope",
    "env_cfg",
    "launcher",
    "log_processor",
    "test_cfg",
    "test_dataloader",
)


@dataclass
class Network:
    """A network to compare.

    Attributes:
        name (str): Name in the page.
        model (ConfigDict): Config of the model.
        checkpoint (str, optional): Its weights; None for a timm network with pretrained ones.
        work_dir (Path, optional): Folder of its training, for the curves.
    """

    name: str
    model: ConfigDict
    checkpoint: str | None
    work_dir: Path | None = None


@dataclass
class Evaluation:
    """Result of the evaluation of a network.

    Attributes:
        dataset (Dataset): The dataset.
        metrics (dict[str, Any]): Metrics by name.
        predictions (list[dict]): Data samples in the order of the dataset.
        num_parameters (int): Size of the network.
    """

    dataset: Dataset
    metrics: dict[str, Any]
    predictions: list[dict]
    num_parameters: int


def compare(
    cfg: Config, networks: Sequence[Network], num_images: int, out: Path, title: str
) -> None:
    """Evaluate networks on the test set of a config, and write a page that compares them.

    Args:
        cfg (Config): Config with the test set and its evaluators.
        networks (Sequence[Network]): The networks. The page begins with the images on which the
            first one is right and the last one is wrong.
        num_images (int): How many images the page has at most: those on which these two differ
            most.
        out (Path): The page (.html).
        title (str): Its title.
    """
    evaluations = [evaluate(cfg, network) for network in networks]
    is_classification = cfg.get("default_scope") == "mmpretrain"
    classes = list(evaluations[0].dataset.metainfo["classes"])
    collect = _collect_labels if is_classification else _collect_boxes
    data = dict(
        title=title,
        source=f"pat_mmdet {__version__}, {date.today()}",
        task="classification" if is_classification else "detection",
        classes=classes,
        networks=[
            dict(
                name=network.name,
                color=COLORS[index % len(COLORS)],
                checkpoint=os.path.basename(network.checkpoint or ""),
                parameters=evaluation.num_parameters,
            )
            for index, (network, evaluation) in enumerate(zip(networks, evaluations))
        ],
        num_tested=len(evaluations[0].predictions),
        threshold=_THRESHOLD,
        min_score=_MIN_SCORE,
        **_tabulate(evaluations, classes),
        images=collect(evaluations, num_images),
    )
    write_atomic(out, render_page(data, draw_curves([network.work_dir for network in networks])))


def evaluate(cfg: Config, network: Network) -> Evaluation:
    """Test a network as ``tools/test.py`` does, and keep its predictions and metrics by class.

    Args:
        cfg (Config): Config with the test set and its evaluators.
        network (Network): The network.

    Returns:
        Evaluation: Metrics and predictions.
    """
    test_cfg = Config({key: deepcopy(cfg[key]) for key in _TEST_KEYS if key in cfg})
    test_cfg.model = deepcopy(network.model)
    # Visualizers are looked up by their names; this one writes nothing.
    test_cfg.experiment_name = f"compare {network.name}"
    test_cfg.visualizer = dict(type="Visualizer", name=test_cfg.experiment_name, vis_backends=None)
    with tempfile.TemporaryDirectory() as folder:
        test_cfg.work_dir = folder
        file = os.path.join(folder, "predictions.pkl")
        test_cfg.test_evaluator = _evaluators(cfg, file)
        runner = Runner.from_cfg(test_cfg)
        if network.checkpoint is not None:
            load_weights(runner.model, network.checkpoint, allow_unused=("distill.",))
        metrics = runner.test()
        return Evaluation(
            dataset=runner.test_dataloader.dataset,
            metrics=metrics,
            predictions=mmengine.load(file),
            num_parameters=sum(weight.numel() for weight in runner.model.parameters()),
        )


def _evaluators(cfg: Config, file: str) -> list[dict]:
    """Return the evaluators of a config with results by class, and one that keeps predictions."""
    evaluators = cfg.test_evaluator
    evaluators = list(evaluators) if isinstance(evaluators, (list, tuple)) else [evaluators]
    scope = cfg.get("default_scope", "mmdet")
    if scope == "mmpretrain":
        accuracies = dict(type="SingleLabelMetric", items=("recall",), average=None)
        return [*evaluators, accuracies, dict(type="DumpResults", out_file_path=file)]
    init_default_scope(scope)
    by_class = [
        {**evaluator, "classwise": True}
        if issubclass(METRICS.get(evaluator["type"]), CocoMetric)
        else evaluator
        for evaluator in evaluators
    ]
    return [*by_class, dict(type="DumpDetResults", out_file_path=file)]


def _tabulate(evaluations: Sequence[Evaluation], classes: Sequence[str]) -> dict[str, list]:
    """Return the rows ``metrics`` and ``class_metrics``: a name, and a value a network or None."""
    overall: dict[str, list] = {}
    # Average precision of COCO's metric, recall (the accuracy in a class) of mmpretrain's.
    by_class: dict[str, list] = {name: [] for name in classes}
    for evaluation in evaluations:
        # Names begin with that of the evaluator: coco/bbox_mAP.
        metrics = {key.partition("/")[2]: value for key, value in evaluation.metrics.items()}
        recalls = metrics.pop("recall_classwise", [None] * len(classes))
        for name, recall in zip(classes, recalls):
            by_class[name].append(_number(metrics.pop(f"{name}_precision", recall)))
        for key, value in metrics.items():
            name = key.replace("bbox_", "").replace("_", " ")
            overall.setdefault(name, []).append(_number(value))
    return dict(metrics=_known_rows(overall), class_metrics=_known_rows(by_class))


def _known_rows(table: dict[str, list]) -> list[dict]:
    """Return the rows of a table that have a value."""
    return [
        dict(name=name, values=values)
        for name, values in table.items()
        if any(value is not None for value in values)
    ]


def _number(value: float | None) -> float | None:
    """Return a metric for JSON; None for NaN, and for -1, COCO's mark of what there is none of."""
    return None if value is None or math.isnan(value) or value < 0 else round(float(value), 4)


def _collect_boxes(evaluations: Sequence[Evaluation], num_images: int) -> list[dict]:
    """Return the images on which the first and the last detector differ most, with all boxes."""
    dataset = evaluations[0].dataset
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    truth = [_annotated(info["instances"]) for info in infos]
    predictions = [
        [_predicted(sample["pred_instances"]) for sample in evaluation.predictions]
        for evaluation in evaluations
    ]
    matches = [match_boxes(truth, boxes) for boxes in predictions]
    visible = [
        [places[boxes.values >= _THRESHOLD] for places, boxes in zip(*network)]
        for network in zip(matches, predictions)
    ]
    # A single network is compared with the annotations.
    best = visible[0] if len(visible) > 1 else [np.flatnonzero(x.values == 0) for x in truth]
    gaps = [_gap(*image) for image in zip(best, visible[-1])]

    def describe(index: int, scale: float) -> dict:
        return dict(
            truth=_rows(truth[index], scale),
            predictions=[
                _rows(boxes[index], scale, places[index].tolist())
                for boxes, places in zip(predictions, matches)
            ],
        )

    return _encode_images(infos, gaps, num_images, describe)


def _annotated(instances: Sequence[dict]) -> Boxes:
    """Return the annotated boxes of an image."""
    boxes = np.array([instance["bbox"] for instance in instances], dtype=float).reshape(-1, 4)
    labels = np.array([instance["bbox_label"] for instance in instances], dtype=int)
    ignored = np.array([instance["ignore_flag"] for instance in instances], dtype=float)
    return Boxes(_with_size(boxes), labels, ignored)


def _predicted(instances: dict) -> Boxes:
    """Return the boxes of an image that the page has."""
    keep = instances["scores"] >= _MIN_SCORE
    boxes, labels, scores = (
        instances[key][keep].double().numpy() for key in ("bboxes", "labels", "scores")
    )
    return Boxes(_with_size(boxes), labels.astype(int), scores)


def _with_size(boxes: np.ndarray) -> np.ndarray:
    """Turn corners into x, y, width, height, (N, 4)."""
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)


def _gap(first: np.ndarray, last: np.ndarray) -> int:
    """Count what one detector has right and another one wrong, from their matches in an image."""
    missed = set(first[first >= 0]) - set(last[last >= 0])
    return len(missed) + max(np.sum(last == FALSE) - np.sum(first == FALSE), 0)


def _rows(boxes: Boxes, scale: float, places: Sequence[int] | None = None) -> list[list]:
    """Return a list a box: x, y, width, height, label, score or ignore flag, and its match."""
    columns = [
        (boxes.boxes * scale).round(1).tolist(),
        boxes.labels.tolist(),
        boxes.values.round(3).tolist(),
    ]
    rows = [[*box, label, value] for box, label, value in zip(*columns)]
    return rows if places is None else [[*row, place] for row, place in zip(rows, places)]


def _collect_labels(evaluations: Sequence[Evaluation], num_images: int) -> list[dict]:
    """Return the images on which the first and the last classifier differ most, with the scores."""
    dataset = evaluations[0].dataset
    infos = [dataset.get_data_info(index) for index in range(len(dataset))]
    scores = [
        np.stack([sample["pred_score"].numpy() for sample in evaluation.predictions])
        for evaluation in evaluations
    ]
    labels = np.array([info["gt_label"] for info in infos])
    truth = np.eye(scores[0].shape[1])[labels]
    best = scores[0] if len(scores) > 1 else truth
    # Right and wrong come first, then how sure the networks are of the true class.
    right, wrong = best.argmax(1) == labels, scores[-1].argmax(1) != labels
    gaps = 2.0 * (right & wrong) + ((best - scores[-1]) * truth).sum(1)

    def describe(index: int, _: float) -> dict:
        tops = [(-network[index]).argsort()[:_TOP] for network in scores]
        return dict(
            truth=int(labels[index]),
            predictions=[
                [[int(label), round(float(network[index, label]), 3)] for label in top]
                for network, top in zip(scores, tops)
            ],
        )

    return _encode_images(infos, gaps, num_images, describe)


def _encode_images(
    infos: Sequence[dict],
    gaps: Sequence[float],
    num_images: int,
    describe: Callable[[int, float], dict],
) -> list[dict]:
    """Return the images with the largest gaps, in the order of the dataset.

    Args:
        infos (Sequence[dict]): Entries of the dataset.
        gaps (Sequence[float]): How much two networks differ on them.
        num_images (int): How many images at most.
        describe (Callable[[int, float], dict]): What is to be shown of the image with this index,
            resized by this factor.
    """
    images: dict[int, dict] = {}
    for index in np.argsort(-np.array(gaps), kind="stable").tolist():
        if len(images) == num_images:
            break
        image = _read_image(infos[index])
        if image is not None:
            encoded = encode_image(image)
            scale = encoded["width"] / image.shape[1]
            # With the folder, which may be all that sets two apart.
            name = "/".join(Path(infos[index].get("img_path", f"image {index}")).parts[-2:])
            images[index] = dict(**encoded, name=name, **describe(index, scale))
    return [images[index] for index in sorted(images)]


def _read_image(info: dict) -> np.ndarray | None:
    """Return an image (H, W, 3), BGR; None if it cannot be read, which the dataset has reported."""
    if "img" in info:  # RGB in the datasets of mmpretrain that hold their images in memory
        return info["img"][..., ::-1]
    shape = (info["height"], info["width"]) if "height" in info else None
    return read_image(info["img_path"], shape)
