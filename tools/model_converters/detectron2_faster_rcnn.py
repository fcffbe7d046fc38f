"""Convert a detectron2 Faster R-CNN with a Swin FPN backbone to this project's.

The result fits ``configs/teachers/faster-rcnn_swin-t_fpn_3x_coco.py``; settings in which the source
differs from that config are printed. Both libraries number levels from the finest, order a
location's anchors by ratio, start at the corner of the image and put the background last, so that
heads keep their tensors; detectron2's default weights (10, 10, 5, 5) of the box deltas are the
config's deviations (0.1, 0.1, 0.2, 0.2).
"""

from __future__ import annotations

import argparse
import re
from math import isqrt
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.registry import MODELS, init_default_scope
from swin import DETECTRON2, convert_backbone, first, fit, read_weights, wrong_source

from pat_mmdet.cli.arguments import add_traceback
from pat_mmdet.utils import load_config
from pat_mmdet.utils.errors import clear_errors

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = Path("configs/teachers/faster-rcnn_swin-t_fpn_3x_coco.py")
ROOT = Path(__file__).resolve().parents[2]
BACKBONE = "backbone.bottom_up."
MASK_HEAD = "roi_heads.mask_head."
# Newer versions of detectron2 do not save the anchors.
ANCHORS = "proposal_generator.anchor_generator.cell_anchors."
PIXELS = {"pixel_mean": "data_preprocessor.mean", "pixel_std": "data_preprocessor.std"}
NUM_CLASSES = "roi_head.bbox_head.num_classes"
LAYERS = {
    **{f"backbone.fpn_lateral{i + 2}": f"neck.lateral_convs.{i}.conv" for i in range(4)},
    **{f"backbone.fpn_output{i + 2}": f"neck.fpn_convs.{i}.conv" for i in range(4)},
    "proposal_generator.rpn_head.conv": "rpn_head.rpn_conv",
    "proposal_generator.rpn_head.objectness_logits": "rpn_head.rpn_cls",
    "proposal_generator.rpn_head.anchor_deltas": "rpn_head.rpn_reg",
    "roi_heads.box_head.fc1": "roi_head.bbox_head.shared_fcs.0",
    "roi_heads.box_head.fc2": "roi_head.bbox_head.shared_fcs.1",
    "roi_heads.box_predictor.cls_score": "roi_head.bbox_head.fc_cls",
    "roi_heads.box_predictor.bbox_pred": "roi_head.bbox_head.fc_reg",
}
TENSORS = {
    f"{old}.{part}": f"{new}.{part}" for old, new in LAYERS.items() for part in ("weight", "bias")
}


def convert(
    source: dict[str, Tensor], input_format: str = "RGB", drop_mask_head: bool = False
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Convert the weights of a detector.

    Args:
        source (dict[str, Tensor]): Weights by detectron2's names.
        input_format (str): Order of the colours the source was trained with, ``'RGB'`` or
            ``'BGR'``; the result always takes RGB.
        drop_mask_head (bool): Whether to leave out a mask head instead of refusing it.

    Returns:
        tuple[dict[str, Tensor], dict[str, object]]: Weights by MMDetection's names, and the
            settings, by dotted key, that have to be changed in the config's model.

    Raises:
        ValueError: If the source is another network, or incomplete.
    """
    if drop_mask_head:
        source = {key: value for key, value in source.items() if not key.startswith(MASK_HEAD)}
    # Newer versions have it in a sequence of one convolution.
    conv = "proposal_generator.rpn_head.conv."
    source = {key.replace(f"{conv}conv0.", conv): value for key, value in source.items()}
    _check_tensors(source)
    backbone = {
        key[len(BACKBONE) :]: value for key, value in source.items() if key.startswith(BACKBONE)
    }
    pixels = {key: source[key].flatten() for key in PIXELS if key in source}
    if input_format == "BGR":
        projection = "patch_embed.proj.weight"
        if projection in backbone:
            backbone[projection] = backbone[projection].flip(1)
        pixels = {key: value.flip(0) for key, value in pixels.items()}
    weights, settings = convert_backbone(backbone)
    weights.update({new: source[old] for old, new in TENSORS.items()})
    found = _find_settings(source, settings)
    found.update({PIXELS[key]: [round(v, 4) for v in pixels[key].tolist()] for key in pixels})

    cfg = load_config(str(ROOT / CONFIG))
    found = {key: value for key, value in found.items() if attrgetter(key)(cfg.model) != value}
    cfg.merge_from_dict({f"model.{key}": value for key, value in found.items()})
    init_default_scope("mmdet")
    network = MODELS.build(cfg.model)
    _check_anchors(source, network.rpn_head.prior_generator.base_anchors)
    return fit(weights, network), found


def _check_tensors(source: dict[str, Tensor]) -> None:
    """Check that a detector has the neck and the heads that are needed, and no others."""
    wanted = "a detectron2 Faster R-CNN with a Swin FPN backbone"
    if not any(re.match(DETECTRON2, key) for key in source):
        raise wrong_source(source, wanted)
    missing = [key for key in TENSORS if key not in source]
    unknown = [key for key in source if not key.startswith((*TENSORS, *PIXELS, BACKBONE, ANCHORS))]
    if missing or unknown:
        masks = any(key.startswith(MASK_HEAD) for key in unknown)
        raise ValueError(
            f"the source is not {wanted}: {len(missing)} tensors of the FPN and the heads are "
            f"missing ({first(missing)}), {len(unknown)} unknown ({first(unknown)})"
            + ("; leave the mask head out by --drop-mask-head" if masks else "")
        )


def _find_settings(source: dict[str, Tensor], backbone: dict[str, object]) -> dict[str, object]:
    """Find the settings of the config's model, by dotted key, in weights (except the pixels')."""
    width = len(source["backbone.fpn_output2.weight"])
    hidden, pooled = source["roi_heads.box_head.fc1.weight"].shape
    classes = len(source["roi_heads.box_predictor.cls_score.weight"]) - 1
    size = isqrt(pooled // width)
    return {
        **{f"backbone.{key}": value for key, value in backbone.items()},
        "neck.in_channels": [
            source[f"backbone.fpn_lateral{i}.weight"].shape[1] for i in range(2, 6)
        ],
        "neck.out_channels": width,
        "rpn_head.in_channels": width,
        "rpn_head.feat_channels": len(source["proposal_generator.rpn_head.conv.weight"]),
        "roi_head.bbox_roi_extractor.out_channels": width,
        "roi_head.bbox_roi_extractor.roi_layer.output_size": size,
        "roi_head.bbox_head.in_channels": width,
        "roi_head.bbox_head.roi_feat_size": size,
        "roi_head.bbox_head.fc_out_channels": hidden,
        NUM_CLASSES: classes,
        # One box for all classes; with a single class both are the same.
        "roi_head.bbox_head.reg_class_agnostic": classes > 1
        and len(source["roi_heads.box_predictor.bbox_pred.weight"]) == 4,
    }


def _check_anchors(source: dict[str, Tensor], expected: list[Tensor]) -> None:
    """Compare the anchors (A, 4) of each level, where the source has them."""
    import torch

    anchors = [source[key].float() for key in sorted(source) if key.startswith(ANCHORS)]
    same = len(anchors) == len(expected) and all(
        a.shape == b.shape and torch.allclose(a, b, atol=0.01) for a, b in zip(anchors, expected)
    )
    if anchors and not same:
        raise ValueError(
            f"the source has {[len(level) for level in anchors]} anchors on its levels, of the "
            f"corners {[level.flatten().tolist() for level in anchors]}; {CONFIG} has "
            f"{[level.flatten().tolist() for level in expected]} on P2 to P6"
        )


def main() -> None:
    """Convert a file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="file with the detectron2 weights (.pth)")
    parser.add_argument("out", help="file for the converted weights")
    parser.add_argument(
        "--input-format",
        choices=["RGB", "BGR"],
        default="RGB",
        help="INPUT.FORMAT of the source's config; detectron2's own default is BGR",
    )
    parser.add_argument(
        "--drop-mask-head", action="store_true", help="convert the boxes of a Mask R-CNN"
    )
    add_traceback(parser)
    args = parser.parse_args()

    import torch

    with clear_errors(args.traceback):
        if args.source.endswith((".pkl", ".pickle")):
            raise ValueError(
                f"checkpoint {args.source!r} is a pickle, which could run foreign code; if you "
                "trust it, load it with pickle.load(file, encoding='latin1') and write its "
                "['model'], arrays turned into tensors, with torch.save"
            )
        source = read_weights(args.source)
        weights, settings = convert(source, args.input_format, args.drop_mask_head)
        Path(args.out).parent.mkdir(parents=True, exist_ok=True)
        torch.save(dict(state_dict=weights), args.out)
    print(f"{len(weights)} tensors: {args.out}")
    # The config's own classes, which stand for COCO's 80, would override their number.
    classes = settings.pop(NUM_CLASSES, None)
    if classes is not None:
        print(f"{CONFIG} needs its {classes} classes, in their order: --cfg-options classes=...")
    if settings:
        options = (f"model.{key}={value}".replace(" ", "") for key, value in settings.items())
        print(
            f"{CONFIG} needs these options (in a pair, model.teacher instead of model): "
            f"--cfg-options {' '.join(options)}"
        )
    mean = source.get("pixel_mean", torch.zeros(3)).flatten().tolist()
    if args.input_format == "RGB" and 0 < mean[0] < mean[-1]:
        print(
            "note: its pixel_mean looks like that of BGR images; if INPUT.FORMAT was BGR, convert "
            "again with --input-format BGR"
        )
    if not PIXELS.keys() <= source.keys():
        print(
            "note: it does not say how images were normalised. Compare MODEL.PIXEL_MEAN and "
            "MODEL.PIXEL_STD of its config (detectron2's own PIXEL_STD is 1) with "
            "model.data_preprocessor, which is in RGB"
        )


if __name__ == "__main__":
    main()
