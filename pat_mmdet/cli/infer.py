"""Predict on images and videos: drawn results and their JSON.

Example:
    pat-mmdet infer student.pth photos/ clip.mp4
    pat-mmdet infer configs/pat/swin_t-res18_coco.py work_dirs/x/iter_180000.pth 'photos/*.jpg'
"""

from __future__ import annotations

import argparse
import glob
import itertools
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config

from pat_mmdet.cli.arguments import add_cfg_options
from pat_mmdet.cli.export import choose_config, find_dataset_meta, plain_config
from pat_mmdet.cli.test import is_classification
from pat_mmdet.utils import prepare_environment
from pat_mmdet.utils.config import is_rgb
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.io import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from torch import nn

# From an image (H, W, 3), BGR, to a DetDataSample or DataSample with predictions.
Predict = Callable[["np.ndarray"], Any]

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
VIDEOS = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v")
_TOP = 5  # classes of an image that are written for a classifier
_MIN_SIDE = 224  # pixels of a drawn image, below which its text cannot be read


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "config", nargs="?", help="config of the checkpoint (.py), if that has none inside"
    )
    parser.add_argument("model", help="checkpoint (of a distiller, its student runs) or ONNX file")
    parser.add_argument("inputs", nargs="+", help="images, videos, folders or globs")
    parser.add_argument("--out", type=Path, default=Path("outputs"), help="default: %(default)s")
    parser.add_argument(
        "--score-thr",
        type=float,
        default=0.3,
        help="score from which on boxes are drawn; the JSON has all (default: %(default)s)",
    )
    parser.add_argument("--device", help="default: the GPU, if there is one")
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.config is not None and not args.config.endswith(".py"):
        args.config, args.model, args.inputs = None, args.config, [args.model, *args.inputs]
    if args.model.endswith(".onnx") and (args.config or args.cfg_options or args.device):
        parser.error("an ONNX file is run as it is: no config, --cfg-options or --device")
    return args


def find_inputs(inputs: list[str]) -> list[Path]:
    """List the images and videos that the command line names.

    Args:
        inputs (list[str]): Files, folders (their files, not those of folders inside) and globs.

    Returns:
        list[Path]: The files, each once.

    Raises:
        FileNotFoundError: If an input does not exist, or has no image or video in it.
        ValueError: If a file is neither an image nor a video by its suffix.
    """
    found: list[Path] = []
    for name in inputs:
        if Path(name).is_file():
            if Path(name).suffix.lower() not in IMAGES + VIDEOS:
                known = ", ".join(IMAGES + VIDEOS)
                raise ValueError(f"input {name!r} is neither an image nor a video ({known})")
            found.append(Path(name))
            continue
        names = Path(name).iterdir() if Path(name).is_dir() else glob.glob(name, recursive=True)
        files = sorted(path for path in map(Path, names) if path.suffix.lower() in IMAGES + VIDEOS)
        if not files:
            exists = "has no image or video in it" if names else "does not exist"
            raise FileNotFoundError(f"input {name!r} {exists}; give a file, a folder or a glob")
        found += files
    return list(dict.fromkeys(found))


def load_checkpoint_model(
    checkpoint: str, config: str | None, options: dict | None, device: str | None
) -> tuple[Predict, Sequence[str]]:
    """Build the network of a checkpoint, which is the student if a distiller was trained.

    Args:
        checkpoint (str): Path or URL of the checkpoint.
        config (str, optional): Path of its config; by default the one inside.
        options (dict, optional): Overridden settings of the config.
        device (str, optional): Where the network runs; by default the GPU, if there is one.

    Returns:
        tuple[Predict, Sequence[str]]: The network and the names of its classes.

    Raises:
        FileNotFoundError: If there is no such checkpoint or config.
        ValueError: If one cannot be read, they do not fit, or there is no config in the checkpoint.
    """
    from mmengine.device import get_device
    from mmengine.registry import init_default_scope

    from pat_mmdet.utils import load_weights, read_checkpoint

    meta = read_checkpoint(checkpoint).get("meta")
    cfg = choose_config(config, checkpoint, meta, options)
    if "test_dataloader" not in cfg:
        raise ValueError("the config has no test_dataloader, which says how images are prepared")
    prepare_environment(cfg, "none")
    init_default_scope(cfg.get("default_scope", "mmdet"))
    classes = find_dataset_meta(cfg, meta).get("classes")
    if classes is None:
        raise ValueError(
            "neither the checkpoint nor its config names the classes; set "
            "test_dataloader.dataset.metainfo.classes"
        )
    cfg = plain_config(cfg)
    device = device or get_device()
    if is_classification(cfg):
        return _load_classifier(cfg, checkpoint, device), classes

    from mmdet.apis import DetInferencer

    class Inferencer(DetInferencer):
        """A ``DetInferencer`` that reads its checkpoint as all tools of this project do."""

        def _load_weights_to_model(self, model: nn.Module, *_: Any) -> None:
            load_weights(model, checkpoint, allow_unused=("distill.",))
            model.dataset_meta = dict(classes=classes, palette="random")

        def _init_visualizer(self, cfg: Config) -> None:
            """Build none: the predictions are drawn by :func:`draw`."""

    inferencer = Inferencer(cfg, device=device, show_progress=False)
    return lambda image: inferencer(image, return_datasamples=True)["predictions"][0], classes


def load_onnx_model(path: str) -> tuple[Predict, Sequence[str]]:
    """Load a network that ``pat-mmdet export`` has written as ONNX.

    Args:
        path (str): Path of the file.

    Returns:
        tuple[Predict, Sequence[str]]: The network and the names of its classes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it was written by something else, or onnxruntime is not installed.
    """
    try:
        import onnxruntime
    except ImportError:
        raise ValueError("ONNX files are run by onnxruntime: pip install onnxruntime") from None
    import torch
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    from pat_mmdet.deploy import OnnxClassifier, OnnxDetector

    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path!r} does not exist; check the path")
    metadata = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    if metadata.get("task") == "classification":
        from mmpretrain.structures import DataSample

        classifier = OnnxClassifier(path)
        return (
            lambda image: DataSample().set_pred_score(torch.from_numpy(classifier(image)))
        ), classifier.classes
    detector = OnnxDetector(path)

    def detect(image: np.ndarray) -> DetDataSample:
        boxes, scores, labels = map(torch.from_numpy, detector(image))
        instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
        return DetDataSample(pred_instances=instances)

    return detect, detector.classes


def _load_classifier(cfg: Config, checkpoint: str, device: str) -> Predict:
    """Build a classifier with the weights of a checkpoint."""
    from mmpretrain import ImageClassificationInferencer, get_model

    from pat_mmdet.utils import load_weights

    model = get_model(cfg, device=device)
    load_weights(model, checkpoint, allow_unused=("distill.",))
    inferencer = ImageClassificationInferencer(model)
    order = -1 if is_rgb(cfg) else 1
    return lambda image: next(
        map(inferencer.forward, inferencer.preprocess([image[..., ::order]]))
    )[0]


def to_records(sample: Any, classes: Sequence[str]) -> list[dict]:
    """Turn predictions for an image into entries of COCO's results format.

    Args:
        sample (DetDataSample | DataSample): Predictions of a detector or classifier.
        classes (Sequence[str]): Names of the classes.

    Returns:
        list[dict]: An entry a box, or one for each of the best classes of a classifier, without a
        box, best first. ``category_id`` is the index of the class.
    """
    if "pred_instances" not in sample:
        scores, labels = sample.pred_score.cpu().sort(descending=True)
        found = [
            dict(category_id=label, score=score)
            for label, score in zip(labels[:_TOP].tolist(), scores[:_TOP].tolist())
        ]
    else:
        instances = sample.pred_instances.cpu()
        boxes, labels, scores = (
            getattr(instances, key).tolist() for key in ("bboxes", "labels", "scores")
        )
        found = [
            dict(category_id=label, bbox=[x, y, right - x, bottom - y], score=score)
            for (x, y, right, bottom), label, score in zip(boxes, labels, scores)
        ]
    return [{**entry, "category_name": classes[entry["category_id"]]} for entry in found]


def draw(image: np.ndarray, sample: Any, classes: Sequence[str], score_thr: float) -> np.ndarray:
    """Draw predictions on an image (H, W, 3), BGR; a small one is enlarged for a classifier."""
    from mmengine.visualization import Visualizer

    image = image[..., ::-1]
    if "pred_instances" in sample:
        from mmdet.visualization import DetLocalVisualizer

        visualizer: Visualizer = DetLocalVisualizer.get_instance("infer")
        visualizer.dataset_meta = dict(classes=classes, palette="random")
        with warnings.catch_warnings():
            # It warns of every box that touches the border.
            warnings.filterwarnings("ignore", message=".*out of bounds")
            visualizer.add_datasample(
                "infer", image, sample.cpu(), draw_gt=False, pred_score_thr=score_thr
            )
    else:
        from mmpretrain.visualization import UniversalVisualizer

        visualizer = UniversalVisualizer.get_instance("infer")
        side = max(min(image.shape[:2]), _MIN_SIDE)
        visualizer.visualize_cls(image, sample, classes, draw_gt=False, resize=side)
    return visualizer.get_image()[..., ::-1]


def read_frames(path: Path) -> Any:
    """Return the frames (H, W, 3), BGR, of a video or an image, a sequence; empty if unreadable."""
    import mmcv

    if path.suffix.lower() in VIDEOS:
        return mmcv.VideoReader(str(path))
    image = mmcv.imread(path)
    return [] if image is None else [image]


def write_video(path: Path, frames: Iterator[np.ndarray], fps: float) -> None:
    """Write frames (H, W, 3), BGR, of one size to a video (.mp4), one by one as they come."""
    import cv2

    first = next(frames)
    size = first.shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), fps, size)
    for frame in itertools.chain([first], frames):
        writer.write(frame)
    writer.release()


@dataclass
class Inference:
    """Predict on images one after the other, and keep the predictions.

    Attributes:
        predict (Predict): The network.
        classes (Sequence[str]): Names of its classes.
        score_thr (float): Score from which on boxes are drawn.
        records (list[dict]): Predictions for all images until now, see :func:`to_records`.
        num_images (int): Number of these images.
    """

    predict: Predict
    classes: Sequence[str]
    score_thr: float
    records: list[dict] = field(default_factory=list)
    num_images: int = 0

    def __call__(self, image: np.ndarray, **source: Any) -> np.ndarray:
        """Predict on an image.

        Args:
            image (np.ndarray): (H, W, 3), BGR.
            **source (Any): Where the image comes from, for the records.

        Returns:
            np.ndarray: The image with the predictions drawn.
        """
        sample = self.predict(image)
        source["image_id"] = self.num_images
        self.records += [{**source, **record} for record in to_records(sample, self.classes)]
        self.num_images += 1
        return draw(image, sample, self.classes, self.score_thr)


def infer_files(files: Sequence[Path], inference: Inference, folder: Path) -> list[str]:
    """Predict on images and videos, and write them with the predictions drawn to a folder.

    Returns:
        list[str]: The files that cannot be read.
    """
    import cv2
    from rich.progress import Progress

    # Files of different folders may have the same name.
    root = os.path.commonpath([file.absolute().parent for file in files])
    unreadable = []
    with Progress() as progress:
        for file in progress.track(files, description="files"):
            name = os.path.relpath(file.absolute(), root)
            frames = read_frames(file)
            out_file = folder / name
            out_file.parent.mkdir(parents=True, exist_ok=True)
            if len(frames) == 0:
                unreadable.append(str(file))
            elif file.suffix.lower() in VIDEOS:
                drawn = (
                    inference(frame, file_name=name, frame=index)
                    for index, frame in enumerate(progress.track(frames, description=name))
                )
                suffix = "" if file.suffix == ".mp4" else ".mp4"
                write_video(folder / (name + suffix), drawn, frames.fps)
            else:
                cv2.imwrite(str(out_file), inference(frames[0], file_name=name))
    return unreadable


def main() -> None:
    """Predict as the command line says."""
    args = parse_args()
    with clear_errors(args.traceback):
        files = find_inputs(args.inputs)
        if args.model.endswith(".onnx"):
            predict, classes = load_onnx_model(args.model)
        else:
            predict, classes = load_checkpoint_model(
                args.model, args.config, args.cfg_options, args.device
            )
    inference = Inference(predict, classes, args.score_thr)
    unreadable = infer_files(files, inference, args.out / "vis")
    write_atomic(args.out / "predictions.json", json.dumps(inference.records))
    print(f"drawn:       {args.out / 'vis'}\npredictions: {args.out / 'predictions.json'}")
    if unreadable:
        sys.exit(f"error: {len(unreadable)} files cannot be read: {', '.join(unreadable)}")


if __name__ == "__main__":
    main()
