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
from pat_mmdet.models.methods.base import Prompted
from pat_mmdet.models.task_modules import Prompt, Prompter, Recorder
from pat_mmdet.models.task_modules.score_readers import Fields, common_scores, score_widths
from pat_mmdet.models.task_modules.stages import Stage, backbone_stages
from pat_mmdet.structures import FeatureSpec, NetworkOutputs


@MODELS.register_module()
class DetectionDistiller(BaseDistiller):
    """Distils between MMDetection detectors.

    Features are the levels of the feature pyramid, paired by their strides. Logits are class scores
    (N, K + 1), background last, of both networks at the same places: on the RoIs that the student
    samples in its one training pass, or at locations of dense heads. Methods on features alone take
    any pair; those that compare logits take two detectors with MMDetection's standard RoI head,
    or two with the dense heads of RetinaNet, ATSS, GFL or FCOS on the same locations.

    Args:
        student (dict): Config of the student, an MMDetection detector.
        teacher (dict | str): Config of the teacher, an MMDetection detector, or its path.
        method (dict): Config of the method.
        teacher_checkpoint (str, optional): Path or URL of the teacher's weights.
        teacher_stages (Sequence[dict], optional): Where prompts enter, a dict with the fields of
            :class:`Stage` for each stage; known for the usual backbones.
        feature_strides (Sequence[int], optional): Strides, in pixels, of the feature levels to
            compare; all by default, which must then be the same in both networks.
        **kwargs: Further arguments of :class:`BaseDistiller`.

    Raises:
        ValueError: If the levels or heads of the pair cannot be compared, or a path does not
            exist.
    """

    task = "detection"

    def __init__(
        self,
        student: dict,
        teacher: dict | str,
        method: dict,
        teacher_checkpoint: str | None,
        teacher_stages: Sequence[dict] | None = None,
        feature_strides: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        self._stage_configs = teacher_stages
        self._strides = feature_strides
        super().__init__(student, teacher, method, teacher_checkpoint, **kwargs)

    def _register_hooks(self) -> None:
        if "indices" in self.needs:
            raise ValueError(
                f"{self.method_name} keeps a memory with a place for each training image; the "
                "objects of a detector are drawn anew in each step and have none. Take another "
                "relation method (--method rkd or cc), or use it for classification"
            )
        for detector in (self.student, self.teacher):
            for module in detector.modules():
                if isinstance(module, BaseRoIExtractor):
                    module.register_forward_pre_hook(_extract_in_float32)
            if getattr(detector, "with_rpn", False):
                detector.rpn_head.register_forward_hook(_predict_in_float32)
        # On the teacher's holder, which EMA's deep copy of this model shares.
        scores = common_scores(self.student, self.teacher, self.needs, self.method_name)
        self._frozen.scores = scores
        compared = self.needs & {"logits", "embedding"}
        self._recorder = Recorder(
            self.student,
            inputs=scores.student_inputs if compared else None,
            outputs={"features": "neck" if self.student.with_neck else "backbone"},
        )
        if "prompted" not in self.needs:
            stages = ()
        elif self._stage_configs is None:
            stages = backbone_stages(self.teacher.backbone)
        else:
            stages = tuple(Stage(**cfg) for cfg in self._stage_configs)
        self._teacher_stages = stages
        self._frozen.prompter = Prompter(self.teacher, stages)

    def _find_shapes(self, image: Tensor) -> tuple[FeatureSpec, FeatureSpec]:
        entries: dict[int, tuple[int, int, int]] = {}
        maps: list[Tensor] = []

        def note(index: int, x: Tensor) -> Tensor:
            entries[index] = tuple(x.shape[1:])
            return x

        hook = self.teacher.backbone.register_forward_hook(
            lambda module, args, outputs: maps.extend(outputs)
        )
        with self._frozen.prompter.prompting(note):
            teacher_features = self.teacher.extract_feat(image)
        hook.remove()
        stages = self._teacher_stages
        if sorted(entries) != list(range(len(stages))):
            raise ValueError(
                f"of the teacher's {len(stages)} stages only {sorted(entries)} are run; name "
                "modules in model.teacher_stages that the backbone calls"
            )
        student_features = self.student.extract_feat(image)
        self._student_levels, self._teacher_levels = self._pair_levels(
            _strides(self.student, student_features, image),
            _strides(self.teacher, teacher_features, image),
        )
        own = tuple(tuple(student_features[i].shape[1:]) for i in self._student_levels)
        other = tuple(tuple(teacher_features[i].shape[1:]) for i in self._teacher_levels)
        stage_inputs = tuple(entries[i] for i in range(len(stages)))
        # Tokens enter at the size that the stage works at; maps are often made smaller first.
        sizes = [*(shape[1:] for shape in stage_inputs), maps[-1].shape[-2:]]
        outputs = [
            sizes[i] if stage.layout == "NLC" else sizes[i + 1] for i, stage in enumerate(stages)
        ]
        no_scores = (None, None)
        compared = self.needs & {"logits", "embedding"}
        return (
            FeatureSpec(own, *(score_widths(self.student) if compared else no_scores)),
            FeatureSpec(
                other,
                *(score_widths(self.teacher) if self._frozen.scores else no_scores),
                stage_inputs=stage_inputs,
                stage_features=tuple(_nearest(size, other) for size in outputs),
            ),
        )

    def _pair_levels(self, own: list[int], other: list[int]) -> tuple[list[int], list[int]]:
        """Gives the student's and the teacher's levels to compare, by their strides."""
        if "features" not in self.needs:
            return [], []
        strides = self._strides
        if strides is None:
            if own != other:
                common = tuple(stride for stride in own if stride in other)
                raise ValueError(
                    f"the student gives {len(own)} feature levels with the strides {own} and the "
                    f"teacher {len(other)} with {other}; {self.method_name} compares them one to "
                    "one. Change the necks (start_level, num_outs), or name in "
                    "model.feature_strides those to compare"
                    + (f"; both have {common}" if common else "")
                )
            strides = own
        for role, found in (("student", own), ("teacher", other)):
            if not strides or not set(strides) <= set(found):
                raise ValueError(
                    f"model.feature_strides={tuple(strides)}: the {role}'s feature levels have "
                    f"the strides {found}; name some that both networks have"
                )
        return tuple([found.index(stride) for stride in strides] for found in (own, other))

    def collect_outputs(
        self, inputs: Tensor, data_samples: list, records: dict[str, list]
    ) -> tuple[NetworkOutputs, NetworkOutputs, Prompted]:
        """Shows both networks to the method, as in :class:`BaseDistiller`."""
        images = self._teacher_images(inputs, data_samples)
        own, fields, read = {}, {}, lambda features: {}
        with self._plain_pass() as kept:
            features = self.teacher.extract_feat(images)
        # Not in there, as the student's scores keep their gradient.
        if self._frozen.scores is not None:
            scored = {name: calls for name, calls in records.items() if name != "features"}
            with self._teacher_precision():
                own, fields, read = self._frozen.scores.align(scored, features, data_samples)
        maps = records["features"][0]
        student = NetworkOutputs([maps[i] for i in self._student_levels], **own)

        def view(features: Sequence[Tensor], fields: Fields) -> NetworkOutputs:
            return NetworkOutputs([features[i] for i in self._teacher_levels], **fields)

        def prompted(prompt: Prompt, count: int | None = None) -> NetworkOutputs:
            with self._prompting(prompt, kept, count):
                features = self.teacher.extract_feat(images[:count])
                return view(features, read(features))

        return student, view(features, fields), prompted

    def _teacher_images(self, inputs: Tensor, data_samples: list) -> Tensor:
        """Normalises the student's images (B, 3, H, W) as the teacher's preprocessor would."""
        images = self._renormalised(inputs)
        if images is inputs:
            return inputs
        padded = torch.full_like(images, self.teacher.data_preprocessor.pad_value)
        for i, sample in enumerate(data_samples):
            height, width = sample.img_shape[:2]
            padded[i, :, :height, :width] = images[i, :, :height, :width]
        return padded


def _extract_in_float32(module: nn.Module, args: tuple) -> tuple:
    """Keeps RoI coordinates exact, and maps in the one layout that RoIAlign is right for.

    MMDetection casts RoIs to the features' dtype (905.4 becomes 904 in half precision), mmcv has
    no bf16 kernel, and its CPU kernel misreads channels-last maps.
    """
    features, rois, *rest = args
    return (tuple(x.float().contiguous() for x in features), rois.float(), *rest)


def _predict_in_float32(module: nn.Module, args: tuple, outputs: tuple) -> tuple:
    """Keeps box coordinates exact, and lets mmcv's suppression run, which knows no half floats."""
    return tuple([x.float() for x in levels] for levels in outputs)


def _strides(detector: nn.Module, features: Sequence[Tensor], image: Tensor) -> list[int]:
    """Gives the strides of a detector's feature levels, in pixels.

    The head's anchors or points know them; otherwise the sizes for an image (1, 3, H, W) tell.
    """
    head = getattr(detector, "rpn_head", getattr(detector, "bbox_head", None))
    priors = getattr(head, "prior_generator", None)
    if priors is not None and len(priors.strides) == len(features):
        return [pair[0] for pair in priors.strides]
    return [2 ** round(math.log2(image.shape[-1] / x.shape[-1])) for x in features]


def _nearest(size: Sequence[int], shapes: Sequence[tuple[int, int, int]]) -> int:
    """Finds the map whose area is nearest, by its ratio, to that of (h, w)."""
    areas = [abs(math.log(math.prod(shape[1:]) / math.prod(size))) for shape in shapes]
    return areas.index(min(areas))
