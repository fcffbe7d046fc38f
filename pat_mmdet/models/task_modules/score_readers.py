"""Class scores of two detectors at the same locations: RoIs, or priors of dense heads."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType

import torch
from mmdet.models.dense_heads import AnchorHead, ATSSHead, FCOSHead, GFLHead
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.structures.bbox import bbox2roi
from torch import Tensor, nn

from pat_mmdet.structures import Requires

from .recorder import Activations, Recorder

# What takes the class scores of a network.
STUDENT_SCORES = Requires.STUDENT_LOGITS | Requires.EMBEDDING
TEACHER_SCORES = Requires.TEACHER_LOGITS | Requires.EMBEDDING

# Fields of NetworkOutputs by name.
Scores = dict[str, Tensor]

# As many as RoIs are sampled by MMDetection's two-stage detectors.
_LOCATIONS_PER_IMAGE = 512


def _loss_functions(head: type | None) -> tuple:
    """Return the methods that compute a dense head's losses."""
    return tuple(getattr(head, f"loss_by_feat{suffix}", None) for suffix in ("", "_single"))


# Those that pass the scores of all locations to the classification loss.
_DENSE_LOSSES = {_loss_functions(head) for head in (AnchorHead, ATSSHead, GFLHead, FCOSHead)}


class RoIScores:
    """Read scores (N, K + 1), background last, and embeddings (N, D) on RoIs.

    The RoIs are those that the student samples in its training pass, or, if the student's scores
    are not compared, the teacher's own proposals.

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

    def sample(
        self, activations: Activations, features: Sequence[Tensor], data_samples: list
    ) -> Scores:
        """Choose the locations of a step, and read the teacher there.

        Args:
            activations (dict[str, list]): The student's, by the names of ``student_inputs`` if its
                scores are compared.
            features (Sequence[Tensor]): The teacher's feature levels (B, C, H, W).
            data_samples (list[DetDataSample]): Annotations of the B images.

        Returns:
            dict[str, Tensor]: The teacher's fields of :class:`NetworkOutputs`.
        """
        self._num_images = len(data_samples)
        self._rois = (
            activations["rois"][0]
            if "rois" in activations
            else self._proposals(features, data_samples)
        )
        return self.read(features)

    def read(self, features: Sequence[Tensor]) -> Scores:
        """Read the teacher for other features at the locations of the step.

        Args:
            features (Sequence[Tensor]): Feature levels of all images, or of the first ones.

        Returns:
            dict[str, Tensor]: Fields of :class:`NetworkOutputs`, in the order of the images.
        """
        rois, num_images = self._rois, len(features[0])
        if num_images < self._num_images:
            # The one host synchronisation here, and for a part of the batch only.
            rois = rois[: int((rois[:, 0] < num_images).sum())]
        with self._recorder.recording() as activations:
            logits = self._teacher.roi_head._bbox_forward(features, rois)["cls_score"]
        return {"logits": logits, "embedding": activations["embedding"][0]}

    def read_student(self, activations: Activations) -> Scores:
        """Return the student's fields at the locations of the step, with gradient."""
        names = ("logits", "labels", "embedding")
        return {name: activations[name][0] for name in names if name in activations}

    def _proposals(self, features: Sequence[Tensor], data_samples: list) -> Tensor:
        results = self._teacher.rpn_head.predict(features, data_samples, rescale=False)
        return bbox2roi([result.bboxes[:_LOCATIONS_PER_IMAGE] for result in results])


class DenseScores:
    """Read scores (N, K + 1) of dense heads, background last, location by location.

    A location is a prior of the head: an anchor, or a point. Compared are 512 locations an image:
    the student's positives first, then by teacher confidence. Heads of K independent sigmoids get
    the logit 0 for background: the softmax of a class against background alone is the class's
    sigmoid.

    Args:
        teacher (nn.Module): The frozen detector.
    """

    student_inputs = MappingProxyType(
        {"logits": ("bbox_head.loss_cls", 0), "labels": ("bbox_head.loss_cls", 1)}
    )

    def __init__(self, teacher: nn.Module) -> None:
        self._head = teacher.bbox_head

    def sample(
        self, activations: Activations, features: Sequence[Tensor], data_samples: list
    ) -> Scores:
        """Choose the locations of a step, and read the teacher there; as in `RoIScores`."""
        levels = self._levels(features)
        self._level_sizes = [len(level) * level.shape[1] for level in levels]
        scores = torch.cat(levels, dim=1)
        self._num_images, self._per_image = scores.shape[:2]
        confidence = scores[..., : self._head.num_classes].amax(2)
        if not self._head.use_sigmoid_cls:
            confidence = confidence - scores[..., -1]
        confidence = confidence.flatten()
        if "labels" in activations:
            positive = self._labels(activations) < self._head.num_classes
            confidence = confidence.masked_fill(positive, torch.inf)
        count = min(len(confidence), _LOCATIONS_PER_IMAGE * len(data_samples))
        self._rows = confidence.topk(count).indices.sort().values
        return self._scores(scores, self._rows)

    def read(self, features: Sequence[Tensor]) -> Scores:
        """Read the teacher for other features at the locations; as in `RoIScores`."""
        rows, num_images = self._rows, len(features[0])
        if num_images < self._num_images:
            # As with RoIs, a part of the batch takes a host synchronisation.
            rows = rows[: int((rows < num_images * self._per_image).sum())]
        return self._scores(torch.cat(self._levels(features), dim=1), rows)

    def read_student(self, activations: Activations) -> Scores:
        """Return the student's fields at the locations of the step, with gradient."""
        if "logits" not in activations:
            return {}
        logits = self._by_image(activations["logits"])[self._rows]
        labels = self._labels(activations)[self._rows]
        return {"logits": self._with_background(logits), "labels": labels}

    def _labels(self, activations: Activations) -> Tensor:
        """Return the labels (B·A,) of the student's assigner."""
        # GFL passes labels and box qualities together.
        return self._by_image([x[0] if isinstance(x, tuple) else x for x in activations["labels"]])

    def _scores(self, scores: Tensor, rows: Tensor) -> Scores:
        """Select locations of all scores (B, A, C)."""
        return {"logits": self._with_background(scores.flatten(0, 1)[rows])}

    def _levels(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Return the scores (B, A, C) of the locations of each level."""
        channels = self._head.cls_out_channels
        levels = [x.permute(0, 2, 3, 1) for x in self._head(features)[0]]
        return [x.reshape(len(x), -1, channels) for x in levels]

    def _by_image(self, calls: Sequence[Tensor]) -> Tensor:
        """Reorder what the loss gets level by level to the order of images, (B·A, ...)."""
        levels = torch.cat(list(calls)).split(self._level_sizes)
        images = [x.unflatten(0, (self._num_images, -1)) for x in levels]
        return torch.cat(images, dim=1).flatten(0, 1)

    def _with_background(self, logits: Tensor) -> Tensor:
        """Append the column of background to scores (N, K) of sigmoids: (N, K + 1)."""
        missing = self._head.num_classes + 1 - logits.shape[1]
        return nn.functional.pad(logits, (0, missing))


def build_score_reader(
    student: nn.Module, teacher: nn.Module, requires: Requires, method: str
) -> RoIScores | DenseScores | None:
    """Build the reader of the class scores that a method requires.

    Args:
        student (nn.Module): The student, a detector.
        teacher (nn.Module): The teacher, a detector.
        requires (Requires): What the method reads.
        method (str): Its name.

    Returns:
        RoIScores | DenseScores | None: The reader, if the method reads scores or embeddings.

    Raises:
        ValueError: If the heads cannot be compared or are unknown.
    """
    if not requires & (STUDENT_SCORES | TEACHER_SCORES):
        return None
    kind = _kind("teacher", teacher)
    if requires & STUDENT_SCORES:
        if _kind("student", student) is not kind:
            reason = f"{_head(student)} and {_head(teacher)} score different places"
        elif kind is DenseScores and requires & Requires.EMBEDDING:
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
    """Return the width K + 1 of a detector's class scores and that of its embedding, if any."""
    if hasattr(detector, "roi_head"):
        head = detector.roi_head.bbox_head
        return head.num_classes + 1, head.fc_cls.in_features
    return detector.bbox_head.num_classes + 1, None


def _kind(role: str, detector: nn.Module) -> type[RoIScores] | type[DenseScores]:
    """Return the class that reads a detector's class scores.

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
    """Return the name of a detector's head, for error messages."""
    for kind, attribute in (("RoI", "roi_head"), ("dense", "bbox_head")):
        if hasattr(detector, attribute):
            return f"the {kind} head {type(getattr(detector, attribute)).__name__}"
    return "no box head"


def _difference(student: nn.Module, teacher: nn.Module) -> str | None:
    """Return why two dense heads score different locations, or None if they do not."""
    priors = [detector.bbox_head.prior_generator for detector in (student, teacher)]
    if list(priors[0].strides) != list(priors[1].strides):
        strides = [[pair[0] for pair in prior.strides] for prior in priors]
        return f"their levels have the strides {strides[0]} and {strides[1]}"
    counts = [list(prior.num_base_priors) for prior in priors]
    if counts[0] != counts[1]:
        return f"they have {counts[0][0]} and {counts[1][0]} anchors or points at each location"
    if counts[0][0] > 1 and not all(
        map(torch.equal, priors[0].base_anchors, priors[1].base_anchors)
    ):
        return "their anchors have other sizes"
    return None
