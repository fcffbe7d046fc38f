"""Write images of a config with their boxes or classes, after the pipeline, to a folder.

Example:
    python tools/analysis_tools/browse_dataset.py configs/pat/swin_t-res18_coco.py --number 50

shows what the network is trained on. No window is opened, so it runs without a display.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS, VISUALIZERS, init_default_scope
from mmengine.utils import track_iter_progress

from pat_mmdet.cli.arguments import add_cfg_options
from pat_mmdet.utils import load_config
from pat_mmdet.utils.errors import clear_errors

if TYPE_CHECKING:
    import numpy as np
    from mmdet.structures import DetDataSample
    from mmengine.visualization import Visualizer


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Browse a dataset")
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("work_dirs/browse"), help="default: %(default)s"
    )
    parser.add_argument(
        "--mode", choices=("train", "val"), default="train", help="default: %(default)s"
    )
    parser.add_argument(
        "--number", type=int, default=20, help="how many images at most (default: %(default)s)"
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.number < 1:
        parser.error("--number must be at least 1")
    return args


def load_boxes_first(dataset: ConfigDict) -> None:
    """Move ``LoadAnnotations`` to the place behind the image loader, in place.

    MMDetection's test pipelines load the boxes after resizing, because the evaluation compares
    in the coordinates of the file. Drawn on the resized image, such boxes would be misplaced.

    Args:
        dataset: Config of a dataset or of a wrapper around one or several.
    """
    inner = dataset.get("dataset") or dataset.get("datasets") or []
    for child in [inner] if isinstance(inner, dict) else inner:
        load_boxes_first(child)
    pipeline = dataset.get("pipeline") or []
    types = [step["type"] for step in pipeline]
    if "LoadAnnotations" in types:
        step = pipeline.pop(types.index("LoadAnnotations"))
        pipeline.insert(min(1, len(pipeline)), step)


def prepare_for_drawing(data_sample: DetDataSample) -> DetDataSample:
    """Return the sample with plain arrays for boxes and masks, as the visualizer needs them."""
    from mmdet.models.utils import mask2ndarray
    from mmdet.structures.bbox import BaseBoxes

    data_sample = data_sample.numpy()
    instances = data_sample.gt_instances
    boxes = instances.get("bboxes", None)
    if isinstance(boxes, BaseBoxes):
        instances.bboxes = boxes.tensor
    masks = instances.get("masks", None)
    if masks is not None:
        instances.masks = mask2ndarray(masks).astype(bool)
    data_sample.gt_instances = instances
    return data_sample


def draw(visualizer: Visualizer, image: np.ndarray, data_sample: Any, out_file: str) -> None:
    """Draw the annotation of a sample of MMDetection or mmpretrain on its image (H, W, 3), RGB."""
    if "gt_instances" in data_sample:
        visualizer.add_datasample(
            out_file, image, prepare_for_drawing(data_sample), draw_pred=False, out_file=out_file
        )
    else:
        # Small images are enlarged, or the name of the class could not be read.
        side = max(min(image.shape[:2]), 224)
        visualizer.visualize_cls(image, data_sample, resize=side, out_file=out_file)


def browse(cfg: Config, mode: str, number: int, output_dir: Path) -> int:
    """Draw the first images of a split.

    Args:
        cfg: Config with ``<mode>_dataloader`` and, perhaps, ``visualizer``.
        mode: ``train`` or ``val``.
        number: How many images at most.
        output_dir: Folder of the pictures, created where necessary.

    Returns:
        The number of images drawn.
    """
    init_default_scope(cfg.get("default_scope", "mmdet"))
    dataset_cfg = cfg[f"{mode}_dataloader"].dataset
    if mode == "val":
        load_boxes_first(dataset_cfg)
    dataset = DATASETS.build(dataset_cfg)
    # The config's backends (TensorBoard, say) are for training; here only files are written.
    visualizer_cfg = cfg.get("visualizer") or {"type": "DetLocalVisualizer"}
    visualizer = VISUALIZERS.build({**visualizer_cfg, "vis_backends": None})
    visualizer.dataset_meta = dataset.metainfo

    number = min(number, len(dataset))
    for index in track_iter_progress(range(number)):
        item = dataset[index]
        data_sample = item["data_samples"]
        image = item["inputs"].permute(1, 2, 0).numpy()
        if image.shape[-1] == 3:
            # Pipelines deliver BGR, the visualizer expects RGB.
            image = image[..., ::-1]
        # The index keeps apart equal names, as of several folders or of a repeated dataset.
        out_file = output_dir / f"{index:05d}_{Path(data_sample.img_path).name}"
        draw(visualizer, image, data_sample, str(out_file))
    return number


def main() -> None:
    """Draw the images and say where they are."""
    args = parse_args()
    with clear_errors(args.traceback):
        cfg = load_config(args.config, args.cfg_options)
        if cfg.get(f"{args.mode}_dataloader") is None:
            raise ValueError(f"config {args.config!r} has no {args.mode}_dataloader")
        number = browse(cfg, args.mode, args.number, args.output_dir)
        if number == 0:
            raise ValueError(
                f"the {args.mode} dataset of {args.config} has no image; check its ann_file"
            )
    print(f"\nwrote {number} images to {args.output_dir}")


if __name__ == "__main__":
    main()
