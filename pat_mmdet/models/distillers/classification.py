"""Distilling a classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from pat_mmdet.models.distillers.base import BaseDistiller
from pat_mmdet.models.distillers.teacher import ClassificationTeacher
from pat_mmdet.models.task_modules import Activations, Stage, find_stages
from pat_mmdet.models.task_modules.classifier_reader import ClassifierReader
from pat_mmdet.structures import FeatureSpec, NetworkOutputs, Requires


@MODELS.register_module()
class ClassificationDistiller(BaseDistiller):
    """Distil between classifiers of mmpretrain, timm models in its ``TimmClassifier`` included.

    Features are the outputs of the backbone's stages as maps, tokens without the class token.
    Logits (B, K) and the embedding (B, D), the input of the last linear layer, are those of the
    student's one training pass. With mixup or cutmix, the label is the class of the larger share.

    Args:
        student (dict): Config of the student, an mmpretrain classifier.
        teacher (dict | str): Config of the teacher, an mmpretrain classifier, or its path.
        method (dict): Config of the method.
        teacher_checkpoint (str, optional): Path or URL of the teacher's weights.
        student_stages (Sequence[dict], optional): The student's stages, a dict with the fields of
            :class:`Stage` for each; known for the usual backbones.
        teacher_stages (Sequence[dict], optional): The teacher's stages.
        **kwargs: Further arguments of :class:`BaseDistiller`.

    Raises:
        ValueError: If a path does not exist, or the stages of a network are unknown.
    """

    task = "classification"
    frozen_teacher: ClassificationTeacher

    def __init__(
        self,
        student: dict,
        teacher: dict | str,
        method: dict,
        teacher_checkpoint: str | None,
        student_stages: Sequence[dict] | None = None,
        teacher_stages: Sequence[dict] | None = None,
        **kwargs: Any,
    ) -> None:
        self._stage_configs = (student_stages, teacher_stages)
        super().__init__(student, teacher, method, teacher_checkpoint, **kwargs)

    def _build_frozen_teacher(
        self, network: nn.Module, dtype: torch.dtype | None
    ) -> ClassificationTeacher:
        requires = self.distill.requires
        embedding = Requires.EMBEDDING in requires
        student_stages: Sequence[Stage] = ()
        teacher_stages: Sequence[Stage] = ()
        if requires & Requires.STUDENT_FEATURES:
            student_stages = find_stages(self.student, self._stage_configs[0], "student")
        if requires & (Requires.TEACHER_FEATURES | Requires.PROMPTS):
            teacher_stages = find_stages(network, self._stage_configs[1], "teacher")
        self._recorder = ClassifierReader(self.student, student_stages, embedding, logits=True)
        return ClassificationTeacher(
            ClassifierReader(network, teacher_stages, embedding),
            network,
            self.student.data_preprocessor,
            requires,
            stages=teacher_stages if Requires.PROMPTS in requires else (),
            dtype=dtype,
        )

    def _find_shapes(self, image: Tensor) -> tuple[FeatureSpec, FeatureSpec]:
        with _explain_input_size_error("student", image), self._recorder.recording() as activations:
            activations["logits"] = [self.student(image, mode="tensor")]
            student = self._recorder.describe(self._recorder.read(activations))
        with _explain_input_size_error("teacher", image):
            teacher = self.frozen_teacher.describe(image)
        return student, teacher

    def _student_outputs(self, activations: Activations, data_samples: list) -> NetworkOutputs:
        outputs = self._recorder.read(activations)
        device = outputs.logits.device
        if "gt_score" in data_samples[0]:
            outputs.soft_labels = torch.stack([sample.gt_score for sample in data_samples])
            outputs.soft_labels = outputs.soft_labels.to(device)
            outputs.labels = outputs.soft_labels.argmax(1)
        else:
            outputs.labels = torch.cat([sample.gt_label for sample in data_samples]).to(device)
        if Requires.INDICES in self.distill.requires:
            indices = [sample.sample_idx for sample in data_samples]
            outputs.indices = torch.tensor(indices, device=device)
        return outputs


@contextmanager
def _explain_input_size_error(role: str, image: Tensor) -> Iterator[None]:
    """Re-raise a failed forward pass as a ValueError that names the network and ``input_size``."""
    try:
        yield
    except (AssertionError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the {role} does not take images of model.input_size={tuple(image.shape[2:])} "
            f"({reason}); change it, or img_size in the {role}'s config"
        ) from error
