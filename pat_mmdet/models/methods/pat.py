"""Perspective-Aware Teaching (ICCV 2025): region-aware attention and feedback prompts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from pat_mmdet.models.layers import (
    AdaptiveFeedbackPrompt,
    MapAligner,
    RegionAwareAttention,
    TokenAligner,
)
from pat_mmdet.models.losses import hcl_loss, kd_loss
from pat_mmdet.models.methods.base import BaseMethod, Prompted
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs

_FEEDBACKS = ("previous", "current", "none")


@METHODS.register_module()
class PAT(BaseMethod):
    """Aligns views by attention over regions, and lets the teacher adapt by prompts.

    Source: Perspective-Aware Teaching, ICCV 2025. The loss added to the student's own is
    ``kd_weight · L_KL + fd_weight · L_FD + reg_weight · L_Reg``: KL of the student to the plain
    teacher; hierarchical context loss between aligned student features and those of the
    prompted teacher, summed over levels; KL of the prompted teacher to the plain one.

    The feedback of a stage is the gap between the aligned student's and the teacher's feature,
    without gradient. A stage's feature is the one nearest to its output in size: P2 to P5 for the
    stages of a pyramid that begins at P2. ``'previous'`` takes the gap of the process's last batch
    (each forward is one: under gradient accumulation the last micro-batch): zeros at the first
    step, rows reused in turn for another batch size, maps resized for another size. It is saved in
    checkpoints for ``prompt='channel'``; for ``'spatial'`` (about 90 MB an image at 800×1333) it is
    not, and begins with zeros after a resume. ``'current'`` takes the gap of the same images to the
    plain teacher.

    Args:
        student (FeatureSpec): Shapes of the student.
        teacher (FeatureSpec): Shapes of the teacher.
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

    Raises:
        ValueError: If an option is unknown or a stage does not exist.
    """

    needs = frozenset({"features", "logits", "teacher_logits", "prompted"})

    def __init__(
        self,
        student: FeatureSpec,
        teacher: FeatureSpec,
        prompt: str = "channel",
        feedback: str = "previous",
        afp_stages: Sequence[int] | None = None,
        prompted_share: float = 1.0,
        raa_grid: int = 5,
        raa_dim: int = 64,
        kd_weight: float = 1.0,
        fd_weight: float = 1.0,
        reg_weight: float = 1.0,
        temperature: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        if feedback not in _FEEDBACKS:
            raise ValueError(f"unknown feedback {feedback!r}; known: {', '.join(_FEEDBACKS)}")
        num_stages = len(teacher.stage_inputs)
        stages = range(num_stages) if afp_stages is None else afp_stages
        if not stages or not set(stages) <= set(range(num_stages)):
            raise ValueError(
                f"afp_stages={tuple(stages)}: the teacher has the stages 0 to {num_stages - 1}; "
                "name one at least"
            )
        if not 0 < prompted_share <= 1:
            raise ValueError(f"prompted_share={prompted_share} is not above 0 and at most 1")
        self.first_prompt = min(stages)
        self.prompted_share = prompted_share
        self.feedback = feedback
        self.stage_features = teacher.stage_features
        self.kd_weight = kd_weight
        self.fd_weight = fd_weight
        self.reg_weight = reg_weight
        self.temperature = temperature
        self.raa = RegionAwareAttention(
            [shape[0] for shape in student.features],
            [shape[1:] for shape in student.features],
            grid=raa_grid,
            dim=raa_dim,
        )
        self.aligners = nn.ModuleList(
            TokenAligner(raa_dim, raa_grid**2, shape[0], shape[1:])
            if teacher.tokens
            else MapAligner(raa_dim, shape[0])
            for shape in teacher.features
        )
        self.prompts = nn.ModuleDict(
            {
                str(stage): AdaptiveFeedbackPrompt(
                    teacher.stage_inputs[stage][0],
                    None if feedback == "none" else teacher.features[self.stage_features[stage]][0],
                    prompt=prompt,
                )
                for stage in stages
            }
        )
        self._resumable = prompt == "channel" and feedback == "previous"
        # A plain dict: it changes its shape from step to step and concerns one process alone.
        self._previous: dict[str, Tensor] = {}

    @classmethod
    def needed(cls, settings: Mapping[str, Any]) -> frozenset[str]:
        """Features and prompts, and the logits of the terms with a weight other than 0."""
        off = {"logits"} if settings.get("kd_weight") == 0 else set()
        if off and settings.get("reg_weight") == 0:
            off.add("teacher_logits")
        return cls.needs - off

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, prompted: Prompted
    ) -> dict[str, Tensor]:
        """Gives ``loss_fd``, and ``loss_kd`` and ``loss_reg`` if they have a weight.

        Arguments as in :class:`BaseMethod`.
        """
        aligned = [
            aligner(tokens, target.shape[-2:])
            for aligner, tokens, target in zip(
                self.aligners, self.raa(student.features), teacher.features
            )
        ]
        batch = len(aligned[0])
        images = math.ceil(batch * self.prompted_share)
        sizes: dict[str, Sequence[int]] = {}

        def gap(stage: int, view: NetworkOutputs) -> Tensor:
            level = self.stage_features[stage]
            return aligned[level][:images].detach() - view.features[level][:images].detach()

        def prompt(index: int, x: Tensor) -> Tensor:
            stage = str(index)
            if stage not in self.prompts:
                return x
            sizes[stage] = x.shape[-2:]
            feedback = self._previous.get(stage)
            if self.feedback == "current":
                feedback = self.prompts[stage].encode_feedback(gap(index, teacher), sizes[stage])
            return self.prompts[stage](x, feedback)

        adapted = prompted(prompt) if images == batch else prompted(prompt, images)
        if self.feedback == "previous":
            self._previous = {
                stage: self.prompts[stage].encode_feedback(gap(int(stage), adapted), size)
                for stage, size in sizes.items()
            }
        distance = sum(
            hcl_loss(own[:images], target) for own, target in zip(aligned, adapted.features)
        )
        if images < batch:
            plain = sum(
                hcl_loss(own[images:], target[images:])
                for own, target in zip(aligned, teacher.features)
            )
            distance = (images * distance + (batch - images) * plain) / batch
        losses = {"loss_fd": self.fd_weight * distance}
        for name, weight, view in (
            ("loss_kd", self.kd_weight, student),
            ("loss_reg", self.reg_weight, adapted),
        ):
            if weight:
                target = teacher.logits[: len(view.logits)]
                losses[name] = weight * kd_loss(view.logits, target, self.temperature)
        return losses

    def resume_state(self) -> dict[str, Tensor]:
        """The feedback of the last batch, for ``prompt='channel'``."""
        return dict(self._previous) if self._resumable else {}

    def load_resume_state(self, state: dict[str, Tensor]) -> None:
        """Takes back what :meth:`resume_state` gave, on the device of the parameters."""
        device = next(self.parameters()).device
        self._previous = {stage: value.to(device) for stage, value in state.items()}
