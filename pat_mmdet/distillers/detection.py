"""Distilling a two-stage detector."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.roi_extractors.base_roi_extractor import BaseRoIExtractor
from mmengine.registry import MODELS
from torch import Tensor, nn

from pat_mmdet.distillers.base import BaseDistiller
from pat_mmdet.stages import Stage, backbone_stages
from pat_mmdet.taps import Prompt, Prompter, Recorder
from pat_mmdet.views import NetworkSpec, View


@MODELS.register_module()
class DetectionDistiller(BaseDistiller):
    """Distils between MMDetection two-stage detectors with a standard RoI head.

    Features are the levels of the feature pyramid. Logits are the class scores (N, K + 1) on the
    RoIs that the student samples in its one training pass; the teacher scores the same RoIs.

    Args:
        student (dict): Config of the student, an MMDetection detector.
        teacher (dict): Config of the teacher, an MMDetection detector.
        method (dict): Config of the method.
        teacher_checkpoint (str, optional): Path or URL of the teacher's weights.
        teacher_stages (Sequence[dict], optional): Where prompts enter, a dict with the fields of
            :class:`pat_mmdet.stages.Stage` for each stage; known for the usual backbones.

    Raises:
        ValueError: If a detector has no standard RoI head, or a path does not exist.
    """

    task = "detection"

    def __init__(
        self,
        student: dict,
        teacher: dict,
        method: dict,
        teacher_checkpoint: str | None,
        teacher_stages: Sequence[dict] | None = None,
    ) -> None:
        self._stage_configs = teacher_stages
        super().__init__(student, teacher, method, teacher_checkpoint)

    def _add_taps(self, needs: frozenset[str]) -> None:
        for role, detector in (("student", self.student), ("teacher", self.teacher)):
            _check_roi_head(role, detector)
            for module in detector.modules():
                if isinstance(module, BaseRoIExtractor):
                    module.register_forward_pre_hook(_extract_in_float32)
        if self.student.with_rpn:
            self.student.rpn_head.register_forward_hook(_predict_in_float32)
        embedding = {"embedding": ("roi_head.bbox_head.fc_cls", 0)}
        self._recorder = Recorder(
            self.student,
            inputs={
                "rois": ("roi_head.bbox_roi_extractor", 1),
                "logits": ("roi_head.bbox_head.loss_cls", 0),
                "labels": ("roi_head.bbox_head.loss_cls", 1),
                **embedding,
            },
            outputs={"features": "neck" if self.student.with_neck else "backbone"},
        )
        if "prompted" not in needs:
            stages = ()
        elif self._stage_configs is None:
            stages = backbone_stages(self.teacher.backbone)
        else:
            stages = tuple(Stage(**cfg) for cfg in self._stage_configs)
        self._num_stages = len(stages)
        # On the teacher's holder, which EMA's deep copy of this model shares.
        self._frozen.prompter = Prompter(self.teacher, stages)
        self._frozen.recorder = Recorder(self.teacher, inputs=embedding)
        self._same_images = _same_normalisation(
            self.student.data_preprocessor, self.teacher.data_preprocessor
        )

    def _find_shapes(self, image: Tensor) -> tuple[NetworkSpec, NetworkSpec]:
        entries: dict[int, tuple[int, int, int]] = {}

        def note(index: int, x: Tensor) -> Tensor:
            entries[index] = tuple(x.shape[1:])
            return x

        with self._frozen.prompter.prompting(note):
            teacher_features = self.teacher.extract_feat(image)
        if sorted(entries) != list(range(self._num_stages)):
            raise ValueError(
                f"of the teacher's {self._num_stages} stages only {sorted(entries)} are run; name "
                "modules in model.teacher_stages that the backbone calls"
            )
        student_features = self.student.extract_feat(image)
        return (
            _spec(self.student, student_features),
            _spec(self.teacher, teacher_features, tuple(entries[i] for i in sorted(entries))),
        )

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Computes the detector's losses and the method's.

        Args:
            inputs (Tensor): Normalised images (B, 3, H, W).
            data_samples (list[DetDataSample]): Their annotations.

        Returns:
            dict[str, Tensor]: All losses by name.
        """
        with self._recorder.recording() as records:
            losses = self.student.loss(inputs, data_samples)
        rois = records.pop("rois")
        student = View(**records)
        images = self._teacher_images(inputs, data_samples)
        with torch.no_grad():
            teacher = self._teacher_view(images, rois)

        def prompted(prompt: Prompt) -> View:
            with self._frozen.prompter.prompting(prompt):
                return self._teacher_view(images, rois)

        losses.update(self.distill(student, teacher, prompted))
        return losses

    def _teacher_view(self, images: Tensor, rois: Tensor) -> View:
        """Runs the parts of the teacher that the method asked for."""
        features = self.teacher.extract_feat(images)
        if not self.distill.needs & {"logits", "embedding"}:
            return View(features=features)
        with self._frozen.recorder.recording() as records:
            logits = self.teacher.roi_head._bbox_forward(features, rois)["cls_score"]
        return View(features=features, logits=logits, **records)

    def _teacher_images(self, inputs: Tensor, data_samples: list) -> Tensor:
        """Normalises the student's images (B, 3, H, W) as the teacher's preprocessor would."""
        if self._same_images:
            return inputs
        own_mean, own_std, own_rgb = _normalisation(self.student.data_preprocessor)
        mean, std, rgb = _normalisation(self.teacher.data_preprocessor)
        pixels = inputs * own_std.to(inputs) + own_mean.to(inputs)
        if own_rgb != rgb:
            pixels = pixels.flip(1)
        images = (pixels - mean.to(inputs)) / std.to(inputs)
        padded = torch.full_like(images, self.teacher.data_preprocessor.pad_value)
        for i, sample in enumerate(data_samples):
            height, width = sample.img_shape[:2]
            padded[i, :, :height, :width] = images[i, :, :height, :width]
        return padded


def _check_roi_head(role: str, detector: nn.Module) -> None:
    """Refuses detectors whose RoI head does not work as the standard one.

    Raises:
        ValueError: If the head is missing, of another kind, or changes the loss on boxes.
    """
    head = getattr(detector, "roi_head", None)
    if (
        not isinstance(head, StandardRoIHead)
        or type(head).bbox_loss is not StandardRoIHead.bbox_loss
    ):
        found = "no RoI head" if head is None else f"the RoI head {type(head).__name__}"
        raise ValueError(
            f"the {role} {type(detector).__name__} has {found}; DetectionDistiller needs "
            "MMDetection's StandardRoIHead (Faster R-CNN, Mask R-CNN)"
        )


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


def _spec(
    detector: nn.Module,
    features: Sequence[Tensor],
    stage_inputs: tuple[tuple[int, int, int], ...] = (),
) -> NetworkSpec:
    """Describes a detector by the features of a dry run."""
    shapes = tuple(tuple(x.shape[1:]) for x in features)
    head = detector.roi_head.bbox_head
    return NetworkSpec(shapes, head.num_classes + 1, head.fc_cls.in_features, stage_inputs)


def _same_normalisation(own: nn.Module, other: nn.Module) -> bool:
    """Tells whether two preprocessors give the same images."""
    return all(
        a == b if isinstance(a, bool) else torch.equal(a, b)
        for a, b in zip(_normalisation(own), _normalisation(other))
    )


def _normalisation(preprocessor: nn.Module) -> tuple[Tensor, Tensor, bool]:
    """Gives mean and std (3, 1, 1) and whether the network sees RGB."""
    if preprocessor._enable_normalize:
        mean, std = preprocessor.mean, preprocessor.std
    else:
        mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    return mean, std, preprocessor._channel_conversion
