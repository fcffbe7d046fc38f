"""PAT: perspective-aware teaching, by region-aware attention and feedback prompts (ICCV 2025)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn

from pat_mmdet.models.layers import (
    AdaptiveFeedbackPrompt,
    MapAligner,
    RegionAwareAttention,
    TokenAligner,
)
from pat_mmdet.models.losses import HierarchicalContextLoss, kd_loss
from pat_mmdet.models.methods.base import BaseMethod
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs, PromptableTeacher, Requires
from pat_mmdet.utils.argument_types import (
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
)


@METHODS.register_module()
class PAT(BaseMethod):
    """Align features by attention over regions, and adapt the teacher by prompts.

    Source: Perspective-Aware Teaching, ICCV 2025. The loss added to the student's own is
    ``kd_weight · L_KL + fd_weight · L_FD + reg_weight · L_Reg``: KL of the student to the plain
    teacher; hierarchical context loss between aligned student features and those of the
    prompted teacher, summed over levels; KL of the prompted teacher to the plain one.

    The feedback of a stage is the gap between the aligned student's and the teacher's feature,
    without gradient. A stage's feature is the one nearest to its output in size: P2 to P5 for the
    stages of a pyramid that begins at P2. ``'previous'`` takes the gap of the process's last batch
    (each forward is one: under gradient accumulation the last micro-batch): zeros in the first
    step; recycled cyclically if the batch size changes, and resized with the maps. It is saved in
    checkpoints for ``prompt='channel'``; for ``'spatial'`` (about 90 MB an image at 800×1333) it is
    not, and begins with zeros after a resume. ``'current'`` takes the gap of the same images to the
    plain teacher.

    Args:
        prompt (str): ``'channel'`` or ``'spatial'``, see :class:`AdaptiveFeedbackPrompt`.
        feedback (str): ``'previous'``, ``'current'`` or ``'none'``.
        afp_stages (Sequence[int], optional): Indices of the teacher's stages with a prompt;
            all by default. What lies before the first is computed once for both passes.
        prompted_share (float): Share of the batch that the prompted teacher sees, rounded up to
            images; the features of the others are compared with the plain teacher's. With less
            than 1 a step is cheaper.
        raa_grid (int): Regions along each side of a map.
        raa_dim (int): Width of a region's token.
        kd_weight (float): Weight of ``loss_kd``; with 0 the student's logits are not read, so that
            the networks may have heads of different kinds.
        fd_weight (float): Weight of ``loss_fd``.
        reg_weight (float): Weight of ``loss_reg``; with 0 as well no logits are read.
        temperature (float): Temperature of both KL terms.
    """

    def __init__(
        self,
        prompt: Literal["channel", "spatial"] = "channel",
        feedback: Literal["previous", "current", "none"] = "previous",
        afp_stages: Sequence[NonNegativeInt] | None = None,
        prompted_share: PositiveFraction = 1.0,
        raa_grid: PositiveInt = 5,
        raa_dim: PositiveInt = 64,
        kd_weight: NonNegativeFloat = 1.0,
        fd_weight: NonNegativeFloat = 1.0,
        reg_weight: NonNegativeFloat = 1.0,
        temperature: PositiveFloat = 1.0,
    ) -> None:
        super().__init__()
        self.prompt = prompt
        self.feedback = feedback
        self.afp_stages = afp_stages
        self.prompted_share = prompted_share
        self.raa_grid = raa_grid
        self.raa_dim = raa_dim
        self.kd_weight = kd_weight
        self.fd_weight = fd_weight
        self.reg_weight = reg_weight
        self.temperature = temperature
        # A plain dict: its tensors change their shapes, and differ between processes.
        self._previous: dict[str, Tensor] = {}

    @property
    def requires(self) -> Requires:
        """Requires: Features and prompts, and the logits of terms whose weight is not 0."""
        requires = Requires.FEATURES | Requires.PROMPTS
        if self.kd_weight:
            return requires | Requires.LOGITS
        return requires | Requires.TEACHER_LOGITS if self.reg_weight else requires

    def build_layers(self, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Build RAA, the aligners and the prompts; arguments as in :class:`BaseMethod`.

        Raises:
            ValueError: If a stage does not exist, or shapes do not fit an option.
        """
        num_stages = len(teacher.stage_inputs)
        stages = range(num_stages) if self.afp_stages is None else self.afp_stages
        if not stages or not set(stages) <= set(range(num_stages)):
            raise ValueError(
                f"afp_stages={tuple(stages)}: the teacher has the stages 0 to {num_stages - 1}; "
                "name one at least"
            )
        self.first_prompted_stage = min(stages)
        self.stage_features = teacher.stage_features
        self.raa = RegionAwareAttention(
            [shape[0] for shape in student.features],
            [shape[1:] for shape in student.features],
            grid=self.raa_grid,
            dim=self.raa_dim,
        )
        self.aligners = nn.ModuleList(
            TokenAligner(self.raa_dim, self.raa_grid**2, shape[0], shape[1:])
            if teacher.tokens
            else MapAligner(self.raa_dim, shape[0])
            for shape in teacher.features
        )
        feedback_channels = [
            None if self.feedback == "none" else teacher.features[level][0]
            for level in teacher.stage_features
        ]
        self.prompts = nn.ModuleDict(
            {
                str(stage): AdaptiveFeedbackPrompt(
                    teacher.stage_inputs[stage][0], feedback_channels[stage], prompt=self.prompt
                )
                for stage in stages
            }
        )
        self.hcl_loss = HierarchicalContextLoss()

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, frozen_teacher: PromptableTeacher
    ) -> dict[str, Tensor]:
        """Return ``loss_fd``, and ``loss_kd`` and ``loss_reg`` if they have a weight.

        Arguments as in :class:`BaseMethod`.
        """
        aligned = [
            aligner(regions, feature.shape[-2:])
            for aligner, regions, feature in zip(
                self.aligners, self.raa(student.features), teacher.features
            )
        ]
        num_images = math.ceil(len(aligned[0]) * self.prompted_share)
        sizes: dict[str, Sequence[int]] = {}

        def encode_gap(stage: str, outputs: NetworkOutputs) -> Tensor:
            level = self.stage_features[int(stage)]
            student_feature = aligned[level][:num_images].detach()
            gap = student_feature - outputs.features[level][:num_images].detach()
            return self.prompts[stage].encode_feedback(gap, sizes[stage])

        def prompt(stage: int, x: Tensor) -> Tensor:
            key = str(stage)
            if key not in self.prompts:
                return x
            sizes[key] = x.shape[-2:]
            feedback = self._previous.get(key)
            if self.feedback == "current":
                feedback = encode_gap(key, teacher)
            return self.prompts[key](x, feedback)

        prompted = frozen_teacher.forward_prompted(prompt, num_images)
        if self.feedback == "previous":
            self._previous = {stage: encode_gap(stage, prompted) for stage in sizes}
        distance = self._feature_distance(aligned, teacher, prompted, num_images)
        losses = {"loss_fd": self.fd_weight * distance}
        for name, weight, outputs in (
            ("loss_kd", self.kd_weight, student),
            ("loss_reg", self.reg_weight, prompted),
        ):
            if weight:
                teacher_logits = teacher.logits[: len(outputs.logits)]
                losses[name] = weight * kd_loss(outputs.logits, teacher_logits, self.temperature)
        return losses

    def _feature_distance(
        self,
        aligned: Sequence[Tensor],
        teacher: NetworkOutputs,
        prompted: NetworkOutputs,
        num_images: int,
    ) -> Tensor:
        """Return the distance of aligned features, the first images to the prompted teacher."""
        batch = len(aligned[0])
        distance = sum(self.hcl_loss(x[:num_images], y) for x, y in zip(aligned, prompted.features))
        if num_images == batch:
            return distance
        plain = sum(
            self.hcl_loss(x[num_images:], y[num_images:]) for x, y in zip(aligned, teacher.features)
        )
        return (num_images * distance + (batch - num_images) * plain) / batch

    def resume_state(self) -> dict[str, Tensor]:
        """Return the feedback of the last batch, for ``prompt='channel'``."""
        resumable = self.prompt == "channel" and self.feedback == "previous"
        return dict(self._previous) if resumable else {}

    def load_resume_state(self, state: dict[str, Tensor]) -> None:
        """Restore the feedback on the device of the parameters."""
        device = next(self.parameters()).device
        self._previous = {stage: value.to(device) for stage, value in state.items()}
