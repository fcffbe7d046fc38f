"""Class scores of two detectors at the same places: RoIs, or locations of dense heads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import MappingProxyType

import torch
from mmdet.models.dense_heads import AnchorHead, ATSSHead, FCOSHead, GFLHead
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from pat_mmdet.models.task_modules import Recorder

# Fields of a view by name.
Fields = dict[str, Tensor]

# As many as RoIs are sampled by MMDetection's two-stage detectors.
_PLACES_PER_IMAGE = 512


def _loss_functions(head: type | None) -> tuple:
    """The functions that make a dense head's losses."""
    return tuple(getattr(head, f"loss_by_feat{end}", None) for end in ("", "_single"))


# Those that hand the scores of all locations to the classification loss.
_DENSE_LOSSES = {_loss_functions(head) for head in (AnchorHead, ATSSHead, GFLHead, FCOSHead)}


class RoIScores:
    """Scores (N, K + 1), background last, and embeddings (N, D) on RoIs.

    The RoIs are those that the student samples in its one training pass, or, where the student is
    not compared, the teacher's own proposals.

    Args:
        teacher (nn.Module): The frozen detector.
    """

    student_inputs = MappingProxyType(
        {
            "rois": ("roi_head.bbox_roi_extractor", 1),
            "logits": ("roi_head.bbox_head.loss_cls", 0),
            "labels": ("roi_head.bbox_head.loss_cls", 1),
            "embedding": ("roi_head.bbox_head.fc_cls", 0),
        }
    )

    def __init__(self, teacher: nn.Module) -> None:
        self._teacher = teacher
        self._recorder = Recorder(teacher, inputs={"embedding": self.student_inputs["embedding"]})

    def align(
        self, records: dict[str, list], features: Sequence[Tensor], data_samples: list
    ) -> tuple[Fields, Fields, Callable[[Sequence[Tensor]], Fields]]:
        """Chooses the places of a step and reads both networks there.

        Args:
            records (dict): What the student's modules were called with, by the names of
                ``student_inputs``; empty where the student is not compared.
            features (Sequence[Tensor]): The teacher's feature levels.
            data_samples (list[DetDataSample]): The images' annotations.

        Returns:
            tuple: The student's fields of a view, the teacher's, and a function that reads
            the teacher's for other features at the same places. Places stand in the order of the
            images; features of the first images alone are read at the places in these.
        """
        own = {name: calls[0] for name, calls in records.items()}
        rois = own.pop("rois") if own else self._proposals(features, data_samples)
        read = partial(self._read, rois=rois, images=len(data_samples))
        return own, read(features), read

    def _read(self, features: Sequence[Tensor], rois: Tensor, images: int) -> Fields:
        count = len(features[0])
        if count < images:
            # The one thing here that waits for the device, and for a part of the batch only.
            rois = rois[: int((rois[:, 0] < count).sum())]
        with self._recorder.recording() as records:
            logits = self._teacher.roi_head._bbox_forward(features, rois)["cls_score"]
        return {"logits": logits, "embedding": records["embedding"][0]}

    def _proposals(self, features: Sequence[Tensor], data_samples: list) -> Tensor:
        results = self._teacher.rpn_head.predict(features, data_samples, rescale=False)
        return bbox2roi([result.bboxes[:_PLACES_PER_IMAGE] for result in results])


class DenseScores:
    """Scores (N, K + 1) of dense heads, background last, location by location.

    A location is a prior of the head: an anchor, or a point. Of all locations of the batch those
    are compared that the student's assigner made foreground, and then those where the teacher sees
    a class most clearly, 512 an image in all. Heads of K independent sigmoids get the logit 0
    for background: the softmax of a class against background alone is the class's sigmoid.

    Args:
        teacher (nn.Module): The frozen detector.
    """

    student_inputs = MappingProxyType(
        {"logits": ("bbox_head.loss_cls", 0), "labels": ("bbox_head.loss_cls", 1)}
    )

    def __init__(self, teacher: nn.Module) -> None:
        self._head = teacher.bbox_head

    def align(
        self, records: dict[str, list], features: Sequence[Tensor], data_samples: list
    ) -> tuple[Fields, Fields, Callable[[Sequence[Tensor]], Fields]]:
        """Chooses the places of a step and reads both networks there; as in `RoIScores`."""
        levels = self._levels(features)
        scores = torch.cat(levels, dim=1)
        rank = scores[..., : self._head.num_classes].amax(2)
        if not self._head.use_sigmoid_cls:
            rank = rank - scores[..., -1]
        rank, own = rank.flatten(), {}
        if records:
            sizes = [len(features[0]) * level.shape[1] for level in levels]
            # GFL hands over labels and box qualities together.
            labels = [x[0] if isinstance(x, tuple) else x for x in records["labels"]]
            labels = self._by_image(labels, sizes, len(features[0]))
            rank = rank.masked_fill(labels < self._head.num_classes, torch.inf)
        rows = rank.topk(min(len(rank), _PLACES_PER_IMAGE * len(data_samples))).indices
        rows = rows.sort().values
        if records:
            logits = self._by_image(records["logits"], sizes, len(features[0]))
            own = {"logits": self._with_background(logits[rows]), "labels": labels[rows]}

        def read(features: Sequence[Tensor]) -> Fields:
            part = rows
            if len(features[0]) < len(scores):
                # As with RoIs, a part of the batch has to wait for the device.
                part = rows[: int((rows < len(features[0]) * scores.shape[1]).sum())]
            return self._fields(torch.cat(self._levels(features), dim=1), part)

        return own, self._fields(scores, rows), read

    def _fields(self, scores: Tensor, rows: Tensor) -> Fields:
        """Takes chosen locations out of all scores (B, A, C)."""
        return {"logits": self._with_background(scores.flatten(0, 1)[rows])}

    def _levels(self, features: Sequence[Tensor]) -> list[Tensor]:
        """The scores (B, A, C) of the locations of each level."""
        channels = self._head.cls_out_channels
        levels = [x.permute(0, 2, 3, 1) for x in self._head(features)[0]]
        return [x.reshape(len(x), -1, channels) for x in levels]

    @staticmethod
    def _by_image(calls: Sequence[Tensor], sizes: Sequence[int], images: int) -> Tensor:
        """Puts what the losses get level by level into the order of images (B·A, ...)."""
        levels = torch.cat(list(calls)).split(sizes)
        return torch.cat([x.unflatten(0, (images, -1)) for x in levels], dim=1).flatten(0, 1)

    def _with_background(self, logits: Tensor) -> Tensor:
        """Gives scores (N, K) of sigmoids the column of background: (N, K + 1)."""
        missing = self._head.num_classes + 1 - logits.shape[1]
        return nn.functional.pad(logits, (0, missing))


def common_scores(
    student: nn.Module, teacher: nn.Module, needs: frozenset[str], method: str
) -> RoIScores | DenseScores | None:
    """Finds where the class scores that a method needs can be read.

    Args:
        student (nn.Module): The student, a detector.
        teacher (nn.Module): The teacher, a detector.
        needs (frozenset[str]): What the method reads.
        method (str): Its name.

    Returns:
        RoIScores | DenseScores | None: The reader, if the method needs one.

    Raises:
        ValueError: If the heads cannot be compared or are not known.
    """
    if not needs & {"logits", "embedding", "teacher_logits"}:
        return None
    kind = _kind("teacher", teacher)
    if needs & {"logits", "embedding"}:
        own = _kind("student", student)
        if own is not kind:
            reason = f"{_head(student)} and {_head(teacher)} score different places"
        elif kind is DenseScores and "embedding" in needs:
            reason = f"{_head(student)} has no embedding of objects as RoI heads have"
        else:
            reason = _difference(student, teacher) if kind is DenseScores else None
        if reason:
            raise ValueError(
                f"{method} compares the class scores or embeddings of student and teacher, but "
                f"{reason}. Take a pair with heads of one kind, or compare features alone: "
                "--method pkd, cwd or mgd; or FitNet or PAT with model.method.kd_weight=0"
            )
    return kind(teacher)


def score_widths(detector: nn.Module) -> tuple[int | None, int | None]:
    """Gives the width K + 1 of the class scores and that of the embedding, where there are any."""
    if hasattr(detector, "roi_head"):
        head = detector.roi_head.bbox_head
        return head.num_classes + 1, head.fc_cls.in_features
    return detector.bbox_head.num_classes + 1, None


def _kind(role: str, detector: nn.Module) -> type[RoIScores] | type[DenseScores]:
    """Tells how a detector's class scores are read.

    Raises:
        ValueError: If its head is missing, of another kind, or has a loss of its own.
    """
    roi_head = getattr(detector, "roi_head", None)
    standard = isinstance(roi_head, StandardRoIHead)
    if standard and type(roi_head).bbox_loss is StandardRoIHead.bbox_loss:
        return RoIScores
    dense_head = type(getattr(detector, "bbox_head", None))
    if roi_head is None and _loss_functions(dense_head) in _DENSE_LOSSES:
        return DenseScores
    raise ValueError(
        f"the {role} {type(detector).__name__} has {_head(detector)}, whose class scores "
        "cannot be read; known are the heads of Faster and Mask R-CNN, RetinaNet, ATSS, GFL and "
        "FCOS. Compare features alone: --method pkd, cwd or mgd"
    )


def _head(detector: nn.Module) -> str:
    """Names a detector's head."""
    for kind, attribute in (("RoI", "roi_head"), ("dense", "bbox_head")):
        if hasattr(detector, attribute):
            return f"the {kind} head {type(getattr(detector, attribute)).__name__}"
    return "no box head"


def _difference(student: nn.Module, teacher: nn.Module) -> str | None:
    """Says why two dense heads do not score the same locations, if so."""
    own, other = (detector.bbox_head.prior_generator for detector in (student, teacher))
    if list(own.strides) != list(other.strides):
        strides = [[pair[0] for pair in priors.strides] for priors in (own, other)]
        return f"their levels have the strides {strides[0]} and {strides[1]}"
    counts = [list(priors.num_base_priors) for priors in (own, other)]
    if counts[0] != counts[1]:
        return f"they have {counts[0][0]} and {counts[1][0]} anchors or points at each location"
    if counts[0][0] > 1 and not all(map(torch.equal, own.base_anchors, other.base_anchors)):
        return "their anchors have other sizes"
    return None
