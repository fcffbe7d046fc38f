"""Converts a detectron2 Faster R-CNN with a Swin FPN backbone to this project's.

The result fits ``configs/teachers/faster-rcnn_swin-t_fpn_3x_coco.py``; settings in which the source
differs from that config are printed. Both number levels from the finest, order a location's anchors
by ratio, start at the corner of the image, and put the background last, so that heads keep their
tensors as they are; detectron2's default weights (10, 10, 5, 5) of the box deltas are the config's
deviations (0.1, 0.1, 0.2, 0.2).
"""

import argparse
import re
from collections.abc import Iterable
from math import isqrt
from operator import attrgetter
from pathlib import Path

import torch
from mmdet.registry import MODELS
from mmengine.registry import init_default_scope
from swin import DETECTRON2, check_family, convert_backbone, first, fit, read_weights
from torch import Tensor

from pat_mmdet.utils import load_config
from pat_mmdet.utils.errors import clear_errors

CONFIG = Path("configs/teachers/faster-rcnn_swin-t_fpn_3x_coco.py")
ROOT = Path(__file__).resolve().parents[2]
BACKBONE = "backbone.bottom_up."
ANCHORS = "proposal_generator.anchor_generator.cell_anchors."
PIXELS = {"pixel_mean": "data_preprocessor.mean", "pixel_std": "data_preprocessor.std"}
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
NUM_CLASSES = "roi_head.bbox_head.num_classes"
MASK_HEAD = r"roi_heads\.mask_head\."
# What else a detectron2 network may have, told by the start of a key; the first that fits is named.
OTHERS = {
    r"backbone\.bottom_up\.(stem|res\d)\.|backbone\.res\d\.": "a ResNet backbone",
    r"roi_heads\.box_(head|predictor)\.\d\.": "the heads of a Cascade R-CNN",
    r"head\.(cls|bbox)_": "the head of a RetinaNet",
    MASK_HEAD: "a mask head (leave it out by --drop-mask-head, the boxes need none)",
    r"roi_heads\.(mask|keypoint)": "a keypoint head or another mask head",
    r"proposal_generator\.rpn_head\.conv\.conv1\.": "an RPN head of several convolutions",
    r"roi_heads\.box_head\.conv": "a box head with convolutions",
    r"backbone\.fpn_\w+\.norm\.": "norms in the FPN",
}


def convert(
    source: dict[str, Tensor], input_format: str = "RGB", drop_mask_head: bool = False
) -> tuple[dict[str, Tensor], dict[str, object]]:
    """Converts the weights of a detector.

    Args:
        source (dict[str, Tensor]): Weights by detectron2's names.
        input_format (str): Order of the colours the source was trained with, ``RGB`` or ``BGR``;
            the result always takes RGB.
        drop_mask_head (bool): Whether to leave out a mask head instead of refusing it.

    Returns:
        tuple: Weights by MMDetection's names, and the settings by dotted key that have to be
            changed in the config's model.

    Raises:
        ValueError: If the source is another network, or not whole.
    """
    check_family(source, DETECTRON2)
    if drop_mask_head:
        source = {key: value for key, value in source.items() if not re.match(MASK_HEAD, key)}
    # In a sequence of one convolution, as newer versions may have it.
    conv = "proposal_generator.rpn_head.conv."
    source = {key.replace(f"{conv}conv0.", conv): value for key, value in source.items()}
    renamed = {
        f"{old}.{part}": f"{new}.{part}"
        for old, new in LAYERS.items()
        for part in ("weight", "bias")
    }
    _check_parts(source, renamed)
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
    weights.update({new: source[old] for old, new in renamed.items()})
    found = _find_settings(source, settings)
    found.update({PIXELS[key]: [round(v, 4) for v in pixels[key].tolist()] for key in pixels})

    cfg = load_config(str(ROOT / CONFIG))
    found = {key: value for key, value in found.items() if attrgetter(key)(cfg.model) != value}
    cfg.merge_from_dict({f"model.{key}": value for key, value in found.items()})
    init_default_scope("mmdet")
    network = MODELS.build(cfg.model)
    _check_anchors(source, network.rpn_head.prior_generator.base_anchors)
    return fit(weights, network), found


def _check_parts(source: dict[str, Tensor], needed: Iterable[str]) -> None:
    """Makes sure that a detector has the neck and the heads that are needed, and no others."""
    for pattern, what in OTHERS.items():
        if any(re.match(pattern, key) for key in source):
            raise ValueError(
                f"the source is {DETECTRON2} with {what}; only a Faster R-CNN with a Swin FPN "
                "backbone can be converted"
            )
    missing = [key for key in needed if key not in source]
    if missing:
        raise ValueError(
            f"the source is not whole: {len(missing)} tensors of the FPN and the heads are missing "
            f"({first(missing)})"
        )
    known = (*needed, *PIXELS, BACKBONE, ANCHORS)
    unknown = [key for key in source if not key.startswith(known)]
    if unknown:
        raise ValueError(
            f"the source has {len(unknown)} tensors that a Faster R-CNN lacks ({first(unknown)})"
        )


def _find_settings(source: dict[str, Tensor], backbone: dict[str, object]) -> dict[str, object]:
    """Finds the settings of the config's model, by dotted key, in weights (except the pixels')."""
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


def _check_anchors(source: dict[str, Tensor], own: list[Tensor]) -> None:
    """Compares the anchors (A, 4) of each level, which newer versions do not save."""
    keys = sorted(key for key in source if key.startswith(ANCHORS))
    if not keys:
        return
    theirs = [source[key] for key in keys]
    same = [
        a.shape == b.shape and torch.allclose(a.float(), b, atol=0.01) for a, b in zip(theirs, own)
    ]
    if len(theirs) != len(own) or not all(same):
        raise ValueError(
            f"the source has {[len(anchors) for anchors in theirs]} anchors on its levels, of the "
            f"corners {[anchors.flatten().tolist() for anchors in theirs]}; {CONFIG} has "
            f"{[anchors.flatten().tolist() for anchors in own]} on P2 to P6"
        )


def main() -> None:
    """Converts a file."""
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
    args = parser.parse_args()
    with clear_errors():
        if args.source.endswith((".pkl", ".pickle")):
            raise ValueError(
                f"checkpoint {args.source!r} is a pickle, which could run foreign code. If you "
                'trust it, save its weights with torch: python -c "import pickle, torch; '
                f"c = pickle.load(open({args.source!r}, 'rb'), encoding='latin1'); "
                "torch.save({'model': {k: torch.as_tensor(v) for k, v in c['model'].items()}}, "
                "'weights.pth')\""
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
