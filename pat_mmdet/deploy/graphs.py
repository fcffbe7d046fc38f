"""Networks with their pre- and post-processing, in a form that can be exported to ONNX.

MMDetection's own ``predict`` branches on what the image shows (``if bboxes.numel() == 0``), which a
graph cannot. The modules here compute the same for one image without such branches. Everything
that they call is MMDetection's: backbones, necks, heads, box coders, anchors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
import torchvision
from mmdet.models.dense_heads import GFLHead, RPNHead
from mmdet.models.dense_heads.base_dense_head import BaseDenseHead
from mmdet.models.detectors import BaseDetector
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from torch import Tensor, nn

Detections = tuple[Tensor, Tensor, Tensor]


class ImagePreprocessor(nn.Module):
    """Normalise and pad images as the network's ``data_preprocessor`` does.

    Args:
        preprocessor (nn.Module): Data preprocessor of MMDetection or mmpretrain.
        is_rgb (bool): Whether it gets RGB images.
    """

    def __init__(self, preprocessor: nn.Module, is_rgb: bool) -> None:
        super().__init__()
        # MMDetection and mmpretrain have different names for the swap of red and blue.
        swaps = getattr(preprocessor, "_channel_conversion", getattr(preprocessor, "to_rgb", False))
        self.swap_channels = bool(swaps) != is_rgb
        self.normalize = preprocessor._enable_normalize
        if self.normalize:
            self.register_buffer("mean", preprocessor.mean.clone(), persistent=False)
            self.register_buffer("std", preprocessor.std.clone(), persistent=False)
        self.divisor = preprocessor.pad_size_divisor
        self.pad_value = float(preprocessor.pad_value)

    def forward(self, image: Tensor) -> Tensor:
        """Return what the network takes.

        Args:
            image (Tensor): (B, 3, H, W), float32, BGR, 0 to 255.

        Returns:
            Tensor: (B, 3, H', W'), padded to a multiple of the divisor.
        """
        if self.swap_channels:
            image = image.flip(1)
        if self.normalize:
            image = (image - self.mean) / self.std
        if self.divisor > 1:
            height, width = image.shape[-2:]
            padding = (0, -width % self.divisor, 0, -height % self.divisor)
            image = F.pad(image, padding, value=self.pad_value)
        return image


class _Graph(nn.Module):
    """A network behind its normalisation and padding.

    Args:
        model (nn.Module): Detector of MMDetection or classifier of mmpretrain, in eval mode.
        is_rgb (bool): Whether it takes RGB images.
    """

    def __init__(self, model: nn.Module, is_rgb: bool) -> None:
        super().__init__()
        self.model = model
        self.preprocess = ImagePreprocessor(model.data_preprocessor, is_rgb)


class ClassifierGraph(_Graph):
    """A classifier from pixels to probabilities; arguments as in :class:`_Graph`."""

    def __init__(self, model: nn.Module, is_rgb: bool) -> None:
        from mmpretrain.models.utils import ShiftWindowMSA  # detection does without mmpretrain

        super().__init__(model, is_rgb)
        for module in model.modules():
            if isinstance(module, ShiftWindowMSA):
                module.window_reverse = _reverse_windows

    def forward(self, image: Tensor) -> Tensor:
        """Return the probabilities (B, K) of images (B, 3, H, W), float32, BGR, 0 to 255."""
        return self.model(self.preprocess(image), mode="tensor").softmax(-1)


class OneStageGraph(_Graph):
    """A detector with a dense head (RetinaNet, ATSS, GFL, FCOS) from pixels to detections.

    Computes ``BaseDenseHead.predict`` for one image. Arguments as in :class:`_Graph`.
    """

    def __init__(self, model: nn.Module, is_rgb: bool) -> None:
        super().__init__(model, is_rgb)
        head = model.bbox_head
        _check_unchanged(head, GFLHead if hasattr(head, "integral") else BaseDenseHead)
        _check_test_cfg(head.test_cfg, "test_cfg", "nms_pre", "max_per_img")
        if head.test_cfg.get("min_bbox_size", -1) > 0:
            raise ValueError(
                f"test_cfg.min_bbox_size={head.test_cfg.min_bbox_size} is in pixels of the image "
                "before resizing, which the graph does not see; only 0 can be exported"
            )

    def forward(self, image: Tensor) -> Detections:
        """Detect objects.

        Args:
            image (Tensor): (1, 3, H, W), float32, BGR, 0 to 255.

        Returns:
            tuple[Tensor, Tensor, Tensor]: Boxes (N, 4) as x1, y1, x2, y2 in pixels of the image,
            scores (N,) in falling order and labels (N,).
        """
        height, width = image.shape[-2:]
        head = self.model.bbox_head
        cfg = head.test_cfg
        logits, deltas, *factors = head(self.model.extract_feat(self.preprocess(image)))
        levels = []
        for level, prior in enumerate(_priors(head, logits)):
            scores = _scores(head, logits[level])
            num_classes = scores.shape[1]
            score, index = _top(scores.reshape(-1), cfg.nms_pre)
            place, label = index // num_classes, index % num_classes
            boxes = self._decode(level, prior[place], deltas[level], place)
            valid = score > cfg.score_thr
            if factors:  # centerness, after the threshold as in MMDetection
                score = score * _flat(factors[0][level], 1)[place, 0].sigmoid()
            levels.append((_clip(head.bbox_coder, boxes, height, width), score, label, valid))
        boxes, scores, labels, valid = map(torch.cat, zip(*levels))
        if "min_bbox_size" in cfg:
            valid = valid & (boxes[:, 2:] - boxes[:, :2] > cfg.min_bbox_size).all(1)
        return _suppress(boxes[valid], scores[valid], labels[valid], cfg)

    def _decode(self, level: int, priors: Tensor, deltas: Tensor, place: Tensor) -> Tensor:
        """Decode the boxes at some places of a level, without clipping."""
        head = self.model.bbox_head
        if not hasattr(head, "integral"):
            return head.bbox_coder.decode(priors, _flat(deltas, head.bbox_coder.encode_size)[place])
        # GFL predicts distributions over distances, of which `head.integral` takes the mean: with a
        # cast of its constants to their own type, which torch 2.11 cannot translate.
        logits = _flat(deltas, 4 * (head.reg_max + 1))[place].reshape(-1, 4, head.reg_max + 1)
        distances = logits.softmax(-1) @ head.integral.project
        stride = head.prior_generator.strides[level][0]
        return head.bbox_coder.decode(head.anchor_center(priors), distances * stride)


class TwoStageGraph(_Graph):
    """Faster R-CNN from pixels to detections.

    Computes ``RPNHead.predict`` and ``StandardRoIHead.predict`` for one image, with a fixed number
    of proposals. Arguments as in :class:`_Graph`.
    """

    def __init__(self, model: nn.Module, is_rgb: bool) -> None:
        super().__init__(model, is_rgb)
        roi_head = model.roi_head
        if type(roi_head) is not StandardRoIHead or roi_head.with_mask:
            raise ValueError(
                f"{type(model).__name__} ({type(roi_head).__name__}) cannot be exported to ONNX: "
                "of the two-stage detectors only Faster R-CNN can"
            )
        _check_unchanged(model.rpn_head, RPNHead)
        _check_unchanged(roi_head.bbox_head, BBoxHead)
        _check_type(roi_head.bbox_roi_extractor, SingleRoIExtractor)
        _check_test_cfg(model.rpn_head.test_cfg, "test_cfg.rpn", "nms_pre", "max_per_img")
        _check_test_cfg(roi_head.test_cfg, "test_cfg.rcnn", "max_per_img")

    def forward(self, image: Tensor) -> Detections:
        """Detect objects; see :meth:`OneStageGraph.forward`."""
        height, width = image.shape[-2:]
        features = self.model.extract_feat(self.preprocess(image))
        proposals, is_real = self._propose(features, height, width)
        roi_head = self.model.roi_head
        head, cfg = roi_head.bbox_head, roi_head.test_cfg
        num_classes = head.num_classes
        logits, deltas = head(
            self._pool(features[: roi_head.bbox_roi_extractor.num_inputs], proposals)
        )
        scores = logits.softmax(-1)[:, :num_classes] * is_real[:, None]
        if head.reg_class_agnostic:
            boxes = _clip(head.bbox_coder, head.bbox_coder.decode(proposals, deltas), height, width)
            boxes = boxes[:, None].expand(-1, num_classes, 4)
        else:
            rois = proposals.repeat_interleave(num_classes, dim=0)
            boxes = head.bbox_coder.decode(rois, deltas.reshape(-1, 4))
            boxes = _clip(head.bbox_coder, boxes, height, width).reshape(-1, num_classes, 4)
        roi, label = torch.nonzero(scores > cfg.score_thr, as_tuple=True)
        return _suppress(boxes[roi, label], scores[roi, label], label, cfg)

    def _propose(
        self, features: tuple[Tensor, ...], height: int, width: int
    ) -> tuple[Tensor, Tensor]:
        """Propose ``max_per_img`` boxes (N, 4), filled up with empty ones.

        Returns:
            tuple[Tensor, Tensor]: The boxes, and 1 for proposals and 0 for filling (N,).
        """
        head = self.model.rpn_head
        cfg = head.test_cfg
        logits, deltas = head(features)
        levels = []
        for level, (logit, delta, prior) in enumerate(zip(logits, deltas, _priors(head, logits))):
            score, place = _top(_scores(head, logit).reshape(-1), cfg.nms_pre)
            boxes = head.bbox_coder.decode(prior[place], _flat(delta, 4)[place])
            boxes = _clip(head.bbox_coder, boxes, height, width)
            levels.append((boxes, score, torch.full_like(place, level)))
        boxes, scores, groups = map(torch.cat, zip(*levels))
        valid = scores >= 0
        if "min_bbox_size" in cfg:
            valid = valid & (boxes[:, 2:] - boxes[:, :2] > cfg.min_bbox_size).all(1)
        boxes, scores, _ = _suppress(boxes[valid], scores[valid], groups[valid], cfg)
        count = cfg.max_per_img
        is_real = torch.cat([torch.ones_like(scores), scores.new_zeros(count)])[:count]
        return torch.cat([boxes, boxes.new_zeros(count, 4)])[:count], is_real

    def _pool(self, features: tuple[Tensor, ...], boxes: Tensor) -> Tensor:
        """Pool the features of boxes (N, 4), each from the level of its size."""
        extractor = self.model.roi_head.bbox_roi_extractor
        rois = torch.cat([boxes.new_zeros((boxes.shape[0], 1)), boxes], dim=1)
        levels = extractor.map_roi_levels(rois, len(features))
        pooled = [
            torchvision.ops.roi_align(
                feature,
                rois[torch.nonzero(levels == level).squeeze(1)],
                layer.output_size,
                layer.spatial_scale,
                layer.sampling_ratio,
                layer.aligned,
            )
            for level, (feature, layer) in enumerate(zip(features, extractor.roi_layers))
        ]
        # Back into the order of the boxes, by the inverse permutation: its argsort. The permutation
        # itself comes from a sort of known length, so that the result has a known length as well.
        count = rois.shape[0]
        order = (levels * count + torch.arange(count, device=levels.device)).argsort()
        return torch.cat(pooled)[order.argsort()]


def build_graph(model: nn.Module, is_rgb: bool) -> nn.Module:
    """Build the graph of a network, of which the network is a part.

    Args:
        model (nn.Module): Detector of MMDetection or classifier of mmpretrain.
        is_rgb (bool): Whether the network takes RGB images; the graph takes BGR ones.

    Returns:
        nn.Module: The graph, in eval mode.

    Raises:
        ValueError: If there is none for such a network, or for its test settings.
    """
    if not isinstance(model, BaseDetector):
        graph: nn.Module = ClassifierGraph(model, is_rgb)
    elif hasattr(model, "roi_head"):
        graph = TwoStageGraph(model, is_rgb)
    elif hasattr(model, "bbox_head"):
        graph = OneStageGraph(model, is_rgb)
    else:
        raise ValueError(f"{type(model).__name__} cannot be exported to ONNX")
    return graph.eval().requires_grad_(False)


def detection_head(detector: nn.Module) -> nn.Module:
    """Return the head that gives the detections."""
    return getattr(detector, "roi_head", detector).bbox_head


def detection_cfg(detector: nn.Module) -> Any:
    """Return the ``test_cfg`` of the head that gives the detections."""
    # A bbox_head of a two-stage detector has none.
    return getattr(detector, "roi_head", detection_head(detector)).test_cfg


def _reverse_windows(windows: Tensor, height: int, width: int, window_size: int) -> Tensor:
    """Put windows (N, S, S, C) back into maps (B, H, W, C), as mmpretrain's Swin does.

    There, the number of images goes through a floating-point number, which makes it a constant of
    the graph.
    """
    rows, columns = height // window_size, width // window_size
    maps = windows.view(-1, rows, columns, window_size, window_size, windows.shape[-1])
    return maps.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])


def _flat(maps: Tensor, channels: int) -> Tensor:
    """Reshape maps (1, A * channels, H, W) of one image to (H * W * A, channels)."""
    return maps[0].permute(1, 2, 0).reshape(-1, channels)


def _priors(head: nn.Module, logits: Sequence[Tensor]) -> list[Tensor]:
    """Return the anchors or points (N, 4 or 2) of each level of a dense head."""
    sizes = [logit.shape[-2:] for logit in logits]
    like = dict(dtype=logits[0].dtype, device=logits[0].device)
    return head.prior_generator.grid_priors(sizes, **like)


def _scores(head: nn.Module, logits: Tensor) -> Tensor:
    """Return the scores (N, K) of a level of a dense head, without background."""
    scores = _flat(logits, head.cls_out_channels)
    return scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1)[:, :-1]


def _top(scores: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return the largest scores (count,) and their indices, also if there are fewer.

    ONNX's TopK must not ask for more values than there are, and a small image has few. What does
    not exist has the score -1 and the index 0.
    """
    length = scores.shape[0]
    top, index = torch.cat([scores, scores.new_full((count,), -1.0)]).topk(count)
    return top, torch.where(index < length, index, 0)


def _clip(coder: Any, boxes: Tensor, height: int, width: int) -> Tensor:
    """Clip boxes (N, 4) to the image without its padding."""
    if not coder.clip_border:
        return boxes
    # As a tensor: a limit of clamp() would become a constant of the graph.
    limits = torch.stack([torch.ones(()) * size for size in (width, height, width, height)])
    return torch.minimum(boxes.clamp(min=0), limits.to(boxes))


def _suppress(boxes: Tensor, scores: Tensor, groups: Tensor, cfg: Any) -> Detections:
    """Keep the boxes that no better one of their group covers, as ``mmcv.ops.batched_nms``.

    Args:
        boxes (Tensor): (N, 4).
        scores (Tensor): (N,).
        groups (Tensor): Classes or levels (N,), int64.
        cfg (ConfigDict): With ``nms`` and ``max_per_img``.

    Returns:
        tuple[Tensor, Tensor, Tensor]: Boxes, scores and groups, by falling score.
    """
    moved = boxes
    if not cfg.nms.get("class_agnostic", False):
        # The zero is for an image without boxes, where max() is not defined.
        largest = torch.cat([boxes.reshape(-1), boxes.new_zeros(1)]).max()
        moved = boxes + (groups.to(boxes) * (largest + 1))[:, None]
    keep = torchvision.ops.nms(moved, scores, cfg.nms.iou_threshold)[: cfg.max_per_img]
    return boxes[keep], scores[keep], groups[keep]


def _check_type(module: nn.Module, expected: type) -> None:
    """Refuse a module of another type."""
    if type(module) is not expected:
        raise ValueError(f"{type(module).__name__} cannot be exported to ONNX")


def _check_unchanged(head: nn.Module, base: type) -> None:
    """Refuse a head that computes its boxes in a way of its own."""
    for name in ("_predict_by_feat_single", "_bbox_post_process"):
        if getattr(type(head), name, None) is not getattr(base, name, None):
            raise ValueError(
                f"{type(head).__name__} cannot be exported to ONNX: it has a {name} of its own"
            )
    if getattr(head.loss_cls, "custom_cls_channels", False):
        raise ValueError(
            f"{type(head).__name__} cannot be exported to ONNX with {type(head.loss_cls).__name__}"
        )


def _check_test_cfg(cfg: Any, name: str, *limits: str) -> None:
    """Refuse test settings that the graph does not follow, or without one of the limits."""
    unknown = set(cfg.nms) - {"type", "iou_threshold", "class_agnostic", "split_thr"}
    if cfg.nms.get("type", "nms") != "nms" or unknown:
        raise ValueError(
            f"{name}.nms={dict(cfg.nms)} cannot be exported to ONNX, which has "
            "dict(type='nms', iou_threshold=...) alone"
        )
    for key in limits:
        if cfg.get(key, -1) <= 0:
            raise ValueError(f"{name}.{key} must be a number above 0 to be exported to ONNX")
