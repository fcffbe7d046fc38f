"""Distilling a detector."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
from mmengine.registry import MODELS
from torch import Tensor, nn

from pat_mmdet.models.distillers.base import BaseDistiller
from pat_mmdet.models.distillers.teacher import DetectionTeacher
from pat_mmdet.models.task_modules import Activations, Recorder, Stage, find_stages
from pat_mmdet.models.task_modules.score_readers import (
    STUDENT_SCORES,
    TEACHER_SCORES,
    build_score_reader,
    score_widths,
)
from pat_mmdet.structures import FeatureSpec, NetworkOutputs, Requires
from pat_mmdet.utils.argument_types import PositiveInt


@MODELS.register_module()
class DetectionDistiller(BaseDistiller):
    """Distil between MMDetection detectors.

    Features are the levels of the feature pyramid, paired by their strides. Logits are class scores
    (N, K + 1), background last, of both networks at the same locations: RoIs that the student
    samples in its one training pass, or priors of dense heads. Methods on features alone take any
    pair; those that compare logits take two detectors with MMDetection's standard RoI head, or two
    with the dense heads of RetinaNet, ATSS, GFL or FCOS on the same locations.

    Args:
        student (dict): Config of the student, an MMDetection detector.
        teacher (dict | str): Config of the teacher, an MMDetection detector, or its path.
        method (dict): Config of the method.
        teacher_checkpoint (str, optional): Path or URL of the teacher's weights.
        teacher_stages (Sequence[dict], optional): Stages whose inputs are prompted, a dict with
            the fields of :class:`Stage` for each; known for the usual backbones.
        feature_strides (Sequence[int], optional): Strides, in pixels, of the feature levels to
            compare; all by default, which must then be the same in both networks.
        **kwargs: Further arguments of :class:`BaseDistiller`.

    Raises:
        ValueError: If the levels or heads of the pair cannot be compared, or a path does not
            exist.
    """

    task = "detection"
    frozen_teacher: DetectionTeacher

    def __init__(
        self,
        student: dict,
        teacher: dict | str,
        method: dict,
        teacher_checkpoint: str | None,
        teacher_stages: Sequence[dict] | None = None,
        feature_strides: Sequence[PositiveInt] | None = None,
        **kwargs: Any,
    ) -> None:
        self._stage_configs = teacher_stages
        self._strides = feature_strides
        super().__init__(student, teacher, method, teacher_checkpoint, **kwargs)

    def _build_frozen_teacher(
        self, network: nn.Module, dtype: torch.dtype | None
    ) -> DetectionTeacher:
        requires, method = self.distill.requires, type(self.distill).__name__
        if Requires.INDICES in requires:
            raise ValueError(
                f"{method} keeps a memory with a place for each training image; the objects of a "
                "detector are drawn anew in each step and have none. Take another relation method "
                "(--method rkd or cc), or use it for classification"
            )
        for detector in (self.student, network):
            for module in detector.modules():
                if isinstance(module, BaseRoIExtractor):
                    module.register_forward_pre_hook(_extract_in_float32)
            if getattr(detector, "with_rpn", False):
                detector.rpn_head.register_forward_hook(_predict_in_float32)
        score_reader = build_score_reader(self.student, network, requires, method)
        self._recorder = Recorder(
            self.student,
            inputs=score_reader.student_inputs if requires & STUDENT_SCORES else None,
            outputs={"features": "neck" if self.student.with_neck else "backbone"},
        )
        stages: Sequence[Stage] = ()
        if Requires.PROMPTS in requires:
            stages = find_stages(network, self._stage_configs, "teacher")
        return DetectionTeacher(
            score_reader, network, self.student.data_preprocessor, requires, stages, dtype
        )

    def _find_shapes(self, image: Tensor) -> tuple[FeatureSpec, FeatureSpec]:
        student_features = self.student.extract_feat(image)
        maps: list[Tensor] = []
        hook = self.teacher.backbone.register_forward_hook(
            lambda module, args, outputs: maps.extend(outputs)
        )
        teacher, stage_inputs = self.frozen_teacher.dry_run(image)
        hook.remove()
        self._student_levels, teacher_levels = self._pair_levels(
            _strides(self.student, student_features, image),
            _strides(self.teacher, teacher.features, image),
        )
        self.frozen_teacher.select_levels(teacher_levels)
        shapes = tuple(tuple(teacher.features[i].shape[1:]) for i in teacher_levels)
        # Tokens enter at the size that the stage works at; maps are often made smaller first.
        sizes = [*(shape[1:] for shape in stage_inputs), maps[-1].shape[-2:]]
        stage_outputs = [
            sizes[i] if stage.layout == "NLC" else sizes[i + 1]
            for i, stage in enumerate(self.frozen_teacher.stages)
        ]
        requires = self.distill.requires
        unread = (None, None)
        return (
            FeatureSpec(
                tuple(tuple(student_features[i].shape[1:]) for i in self._student_levels),
                *(score_widths(self.student) if requires & STUDENT_SCORES else unread),
            ),
            FeatureSpec(
                shapes,
                *(score_widths(self.teacher) if requires & TEACHER_SCORES else unread),
                stage_inputs=stage_inputs,
                stage_features=tuple(_nearest(size, shapes) for size in stage_outputs),
            ),
        )

    def _pair_levels(
        self, student_strides: list[int], teacher_strides: list[int]
    ) -> tuple[list[int], list[int]]:
        """Return the indices of the levels to compare, of the student and of the teacher."""
        if Requires.FEATURES not in self.distill.requires:
            return [], []
        strides = self._strides
        if strides is None:
            if student_strides != teacher_strides:
                common = tuple(stride for stride in student_strides if stride in teacher_strides)
                raise ValueError(
                    f"the student gives {len(student_strides)} feature levels with the strides "
                    f"{student_strides} and the teacher {len(teacher_strides)} with "
                    f"{teacher_strides}; {type(self.distill).__name__} compares them one to one. "
                    "Change the necks (start_level, num_outs), or name in model.feature_strides "
                    "those to compare" + (f"; both have {common}" if common else "")
                )
            strides = student_strides
        for role, found in (("student", student_strides), ("teacher", teacher_strides)):
            if not strides or not set(strides) <= set(found):
                raise ValueError(
                    f"model.feature_strides={tuple(strides)}: the {role}'s feature levels have "
                    f"the strides {found}; name some that both networks have"
                )
        return (
            [student_strides.index(stride) for stride in strides],
            [teacher_strides.index(stride) for stride in strides],
        )

    def _student_outputs(self, activations: Activations, data_samples: list) -> NetworkOutputs:
        features = activations["features"][0]
        scores = self.frozen_teacher.read_student(activations)
        return NetworkOutputs([features[i] for i in self._student_levels], **scores)


def _extract_in_float32(module: nn.Module, args: tuple) -> tuple:
    """Cast RoIs and maps to float32, and make maps contiguous.

    MMDetection casts RoIs to the features' dtype (905.4 becomes 904 in half precision), mmcv has
    no bf16 kernel, and its CPU kernel misreads channels-last maps.
    """
    features, rois, *rest = args
    return (tuple(x.float().contiguous() for x in features), rois.float(), *rest)


def _predict_in_float32(module: nn.Module, args: tuple, outputs: tuple) -> tuple:
    """Cast predictions to float32, for exact boxes; mmcv's NMS has no half-precision kernel."""
    return tuple([x.float() for x in levels] for levels in outputs)


def _strides(detector: nn.Module, features: Sequence[Tensor], image: Tensor) -> list[int]:
    """Return the strides of a detector's feature levels, in pixels.

    They are those of the head's anchors or points, else found by the sizes for an image
    (1, 3, H, W).
    """
    head = getattr(detector, "rpn_head", getattr(detector, "bbox_head", None))
    priors = getattr(head, "prior_generator", None)
    if priors is not None and len(priors.strides) == len(features):
        return [pair[0] for pair in priors.strides]
    return [2 ** round(math.log2(image.shape[-1] / x.shape[-1])) for x in features]


def _nearest(size: Sequence[int], shapes: Sequence[tuple[int, int, int]]) -> int:
    """Return the index of the map whose area is nearest, by its ratio, to that of (h, w)."""
    areas = [abs(math.log(math.prod(shape[1:]) / math.prod(size))) for shape in shapes]
    return areas.index(min(areas))
