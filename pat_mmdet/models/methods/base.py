"""What every distillation method has in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor, nn

from pat_mmdet.models.task_modules import Prompt
from pat_mmdet.structures import FeatureSpec, NetworkOutputs


class Prompted(Protocol):
    """Runs the teacher with prompts on the batch of the step, with gradient to the prompts."""

    def __call__(self, prompt: Prompt, images: int | None = None) -> NetworkOutputs:
        """Gives the view of the prompted teacher.

        Args:
            prompt (Callable): Takes the index of a stage and its input map (B, C, H, W), and
                returns the prompted map.
            images (int, optional): How many images of the batch to run it on, the first ones;
                all by default.

        Returns:
            NetworkOutputs: Of these images; its logits are the first rows of the plain ones.
        """


class BaseMethod(nn.Module, ABC):
    """Turns the views of student and teacher into losses.

    A method declares in :attr:`needs` what it can read, and by :meth:`needed` what it reads with
    given settings; the distiller computes only that: ``'features'``, ``'logits'`` and
    ``'embedding'`` of both networks (the teacher's from its plain pass), ``'student_features'``
    (of the student alone, in classification), ``'teacher_logits'`` (where the teacher's are enough,
    read anywhere), ``'indices'`` of the images, and ``'prompted'``: the third argument of
    :meth:`forward` can be called.

    Args:
        student (FeatureSpec): Shapes of the student.
        teacher (FeatureSpec): Shapes of the teacher.

    Raises:
        ValueError: If the method reads features and the networks have different numbers of
            feature levels, or if it reads logits and they have different numbers of classes.
    """

    needs: frozenset[str] = frozenset()
    # Index of the first stage with a prompt; what lies before it is computed once for both passes.
    first_prompt: int = 0

    def __init__(self, student: FeatureSpec, teacher: FeatureSpec) -> None:
        super().__init__()
        if "features" in self.needs and len(student.features) != len(teacher.features):
            raise ValueError(
                f"the student gives {len(student.features)} feature levels and the teacher "
                f"{len(teacher.features)}; {type(self).__name__} compares them one to one. "
                "Let both give the same: num_outs and out_indices in detection, student_stages and "
                "teacher_stages in classification"
            )
        widths = (student.num_classes, teacher.num_classes)
        if "logits" in self.needs and None not in widths and widths[0] != widths[1]:
            raise ValueError(
                f"the student has {student.num_classes} classes and the teacher "
                f"{teacher.num_classes}; {type(self).__name__} compares their logits (detectors "
                "count the background). Train the teacher on the student's classes, or use a "
                "method on features alone"
            )

    @classmethod
    def needed(cls, settings: Mapping[str, Any]) -> frozenset[str]:
        """Tells what a method with these arguments reads: all of :attr:`needs`, if not less.

        Args:
            settings (Mapping): The method's arguments by name, as far as they are set.
        """
        return cls.needs

    @abstractmethod
    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, prompted: Prompted
    ) -> dict[str, Tensor]:
        """Computes the losses of a step.

        Args:
            student (NetworkOutputs): The student's outputs, with gradient.
            teacher (NetworkOutputs): The plain teacher's outputs, without gradient.
            prompted (Prompted): Runs the teacher with prompts on images of the batch.

        Returns:
            dict[str, Tensor]: Losses, scalars; keys begin with ``loss_``.
        """

    def resume_state(self) -> dict[str, Tensor]:
        """What one process carries from step to step besides parameters and buffers."""
        return {}

    def load_resume_state(self, state: dict[str, Tensor]) -> None:
        """Takes back what :meth:`resume_state` gave."""
