"""Base class of distillation methods."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from pat_mmdet.structures import FeatureSpec, NetworkOutputs, PromptableTeacher, Requires


class BaseMethod(nn.Module, ABC):
    """Compute losses from the outputs of student and teacher.

    A method is built from its hyper-parameters. :attr:`requires` then tells the distiller what to
    compute, and :meth:`build_layers` adds the layers whose shapes depend on the networks.

    Attributes:
        requires (Requires): What the method reads with its hyper-parameters; a class attribute,
            or a property.
        first_prompted_stage (int): Index of the first stage with a prompt, set at the latest by
            :meth:`build_layers`. What lies before it is computed once for both passes, and is not
            prompted.
        watched_loss (str, optional): Name of a loss, weighted by ``fd_weight``, that does harm
            where it is much larger than all others; the distiller warns of it in the first steps.
        inherit_heads (bool): Whether the student begins with the teacher's neck and heads where
            they have its shapes, as in FGD (Yang et al., CVPR 2022).

    Example:
        >>> @METHODS.register_module()
        ... class MSE(BaseMethod):
        ...     requires = Requires.LOGITS
        ...
        ...     def __init__(self, weight: float = 1.0) -> None:
        ...         super().__init__()
        ...         self.weight = weight
        ...
        ...     def forward(self, student, teacher, frozen_teacher):
        ...         return {"loss_mse": self.weight * F.mse_loss(student.logits, teacher.logits)}
    """

    first_prompted_stage: int = 0
    watched_loss: str | None = None
    inherit_heads: bool = False

    @property
    @abstractmethod
    def requires(self) -> Requires:
        """Requires: What the method reads with its hyper-parameters."""

    def check_networks(self, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Check that the method can compare two networks.

        Args:
            student (FeatureSpec): Shapes of the student.
            teacher (FeatureSpec): Shapes of the teacher.

        Raises:
            ValueError: If the method reads features of both and the numbers of levels differ, or
                logits of both and the numbers of classes differ.
        """
        name = type(self).__name__
        levels = (len(student.features), len(teacher.features))
        if Requires.FEATURES in self.requires and levels[0] != levels[1]:
            raise ValueError(
                f"the student gives {levels[0]} feature levels and the teacher {levels[1]}; {name} "
                "compares them one to one. Let both give the same: num_outs and out_indices in "
                "detection, student_stages and teacher_stages in classification"
            )
        widths = (student.num_classes, teacher.num_classes)
        if Requires.LOGITS in self.requires and None not in widths and widths[0] != widths[1]:
            raise ValueError(
                f"the student has {widths[0]} classes and the teacher {widths[1]}; {name} compares "
                "their logits (detectors count the background). Train the teacher on the student's "
                "classes, or use a method on features alone"
            )

    def build_layers(self, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Build the layers of the method; without any there is nothing to override.

        Args:
            student (FeatureSpec): Shapes of the student.
            teacher (FeatureSpec): Shapes of the teacher.

        Raises:
            ValueError: If the networks do not fit the hyper-parameters.
        """

    @abstractmethod
    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, frozen_teacher: PromptableTeacher
    ) -> dict[str, Tensor]:
        """Compute the losses of a step.

        Args:
            student (NetworkOutputs): The student's outputs, with gradient.
            teacher (NetworkOutputs): The plain teacher's outputs, without gradient.
            frozen_teacher (PromptableTeacher): Runs the teacher with prompts on the batch.

        Returns:
            dict[str, Tensor]: Scalar losses; keys begin with ``loss_``.
        """

    def resume_state(self) -> dict[str, Tensor]:
        """Return the per-rank state of an exact resume, besides parameters and buffers."""
        return {}

    def load_resume_state(self, state: dict[str, Tensor]) -> None:
        """Restore what :meth:`resume_state` returned."""
