"""PAT: perspective-aware teaching, by region-aware attention and feedback prompts (ICCV 2025)."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from mmengine.logging import print_log
from torch import Tensor, nn

from pat_mmdet.models.layers import (
    AdaptiveFeedbackPrompt,
    FeatureProjector,
    MapAligner,
    RegionAwareAttention,
    TokenAligner,
)
from pat_mmdet.models.losses import (
    HierarchicalContextLoss,
    channel_correlation_loss,
    kd_loss,
    match_channel_statistics,
    spread_weights,
    standardize_channels,
)
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

    That is the form of the defaults. Further options change what is compared and how, see
    ``docs/pat.md`` for what they cost and gain, and the overlay ``pat_plus`` for the recommended
    ones.

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
            all by default. What lies before the first is computed once for both passes. With none,
            ``()``, features are compared with the plain teacher's.
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
        alignment (str): What of the student is compared with the teacher's levels. ``'raa'``: maps
            that are constant within regions. ``'projector'``: FitNet's projection of the level.
            ``'projector+raa'``: the sum of both, where RAA has a gate for each channel that starts
            at 0. ``'identity'``: the level itself, projected only where the widths differ.
        distance (str): ``'hcl'``, the hierarchical context loss; ``'mse'``; or ``'correlation'``,
            1 − r of each channel, weighted by the channel's spread in the plain teacher, see
            :func:`channel_correlation_loss` and :func:`spread_weights`.
        weigh_levels (bool): Whether levels of larger spread weigh more, for
            ``distance='correlation'`` and ``region_weight``.
        region_weight (float): Weight of ``loss_region``: 1 − r between what RAA's regions predict
            and the averages of the teacher's level over these regions.
        renormalize_target (bool): Whether channels of the prompted teacher's features get the mean
            and the spread of the plain one's, so that prompts cannot lower a raw distance by
            shrinking a level. A correlation has no use for it.
        normalize_feedback (bool): Whether channels of the gap are standardised, as by the batch
            norm before the feedback's convolution in the released code for classification. Its
            affine part is left to that convolution.
        aligner_init (str): Initialisation of all aligning layers. ``'torch'``: the defaults of
            torch. ``'released'``: that of the released code.
        inherit_heads (bool): Whether the student begins with the teacher's neck and heads where
            they have its shapes, as in FGD (Yang et al., CVPR 2022). With ``'identity'`` its
            features are then learnt in the space that these heads read.

    Attributes:
        observer (Callable, optional): Called in each step with the aligned student features, the
            levels that their first images are compared with, and the outputs of the plain and the
            prompted teacher (None without prompts).

    Raises:
        ValueError: If an option has no effect with the others.
    """

    observer: (
        Callable[[list[Tensor], list[Tensor], NetworkOutputs, NetworkOutputs | None], None] | None
    ) = None

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
        alignment: Literal["raa", "projector", "projector+raa", "identity"] = "raa",
        distance: Literal["hcl", "mse", "correlation"] = "hcl",
        weigh_levels: bool = False,
        region_weight: NonNegativeFloat = 0.0,
        renormalize_target: bool = False,
        normalize_feedback: bool = False,
        aligner_init: Literal["torch", "released"] = "torch",
        inherit_heads: bool = False,
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
        self.alignment = alignment
        self.distance = distance
        self.weigh_levels = weigh_levels
        self.region_weight = region_weight
        self.renormalize_target = renormalize_target
        self.normalize_feedback = normalize_feedback
        self.aligner_init = aligner_init
        self.inherit_heads = inherit_heads
        self._check_options()
        # A correlation has no scale, and its value says little of its gradient.
        self.watched_loss = None if distance == "correlation" else "loss_fd"
        # A plain dict: its tensors change their shapes, and differ between processes.
        self._previous: dict[str, Tensor] = {}

    def _check_options(self) -> None:
        """Check the options against each other.

        Raises:
            ValueError: If one has no effect with the others.
        """
        raw = self.distance != "correlation"
        needs = {
            "weigh_levels": ("distance='correlation'", self.region_weight or not raw),
            "renormalize_target": ("prompts and a raw distance", self._is_prompted and raw),
            "normalize_feedback": (
                "prompts with feedback",
                self._is_prompted and self.feedback != "none",
            ),
        }
        for name, (need, is_met) in needs.items():
            if getattr(self, name) and not is_met:
                raise ValueError(f"{name}=True has no effect without {need}; leave it out")

    @property
    def _is_prompted(self) -> bool:
        """bool: Whether any stage of the teacher has a prompt."""
        return self.afp_stages is None or len(self.afp_stages) > 0

    @property
    def requires(self) -> Requires:
        """Requires: Features, prompts if there are any, and logits of terms with a weight."""
        requires = Requires.FEATURES
        if self._is_prompted:
            requires |= Requires.PROMPTS
        if self.kd_weight:
            return requires | Requires.LOGITS
        if self._is_prompted and self.reg_weight:
            return requires | Requires.TEACHER_LOGITS
        return requires

    def build_layers(self, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Build the aligning layers and the prompts; arguments as in :class:`BaseMethod`.

        Raises:
            ValueError: If a stage does not exist, or shapes do not fit an option.
        """
        num_stages = len(teacher.stage_inputs)
        stages = range(num_stages) if self.afp_stages is None else self.afp_stages
        if not set(stages) <= set(range(num_stages)):
            raise ValueError(
                f"afp_stages={tuple(stages)}: the teacher has the stages 0 to {num_stages - 1}"
            )
        self.first_prompted_stage = min(stages, default=0)
        self.stage_features = teacher.stage_features
        self._build_alignment(student, teacher)
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

    def _build_alignment(self, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Build the layers that lead from the student's features to the teacher's."""
        if "raa" in self.alignment or self.region_weight:
            self.raa = RegionAwareAttention(
                [shape[0] for shape in student.features],
                [shape[1:] for shape in student.features],
                grid=self.raa_grid,
                dim=self.raa_dim,
            )
        if "raa" in self.alignment:
            self.aligners = nn.ModuleList(
                TokenAligner(self.raa_dim, self.raa_grid**2, shape[0], shape[1:])
                if teacher.tokens
                else MapAligner(self.raa_dim, shape[0])
                for shape in teacher.features
            )
        if self.alignment != "raa":
            self.projectors = nn.ModuleList(
                self._build_projector(student_shape[0], teacher_shape[0])
                for student_shape, teacher_shape in zip(student.features, teacher.features)
            )
        if self.alignment == "projector+raa":
            self.gates = nn.ParameterList(torch.zeros(shape[0]) for shape in teacher.features)
        if self.region_weight:
            self.region_heads = nn.ModuleList(
                MapAligner(self.raa_dim, shape[0]) for shape in teacher.features
            )
        if self.aligner_init == "released":
            for name, layers in self.named_children():
                if name != "raa":
                    layers.apply(_init_as_released)

    def _build_projector(self, in_channels: int, out_channels: int) -> FeatureProjector:
        """Build the layer from a level of the student to one of the teacher."""
        project = self.alignment != "identity" or in_channels != out_channels
        # RAA's gate weighs it against maps with a norm; a correlation needs none.
        norm = self.alignment == "projector+raa" or self.distance != "correlation"
        return FeatureProjector(in_channels, out_channels, norm=project and norm, project=project)

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, frozen_teacher: PromptableTeacher
    ) -> dict[str, Tensor]:
        """Return ``loss_fd``, and ``loss_region``, ``loss_kd``, ``loss_reg`` if they have a weight.

        Arguments as in :class:`BaseMethod`.
        """
        regions = self.raa(student.features) if hasattr(self, "raa") else []
        aligned = self._align(student.features, regions, teacher.features)
        targets, prompted = list(teacher.features), None
        if self._is_prompted:
            prompted = self._forward_prompted(aligned, teacher, frozen_teacher)
            targets = list(map(self._target, prompted.features, teacher.features))
        if self.observer is not None:
            self.observer(aligned, targets, teacher, prompted)
        losses = self._feature_losses(aligned, regions, targets, teacher.features)
        for name, weight, outputs in (
            ("loss_kd", self.kd_weight, student),
            ("loss_reg", self.reg_weight, prompted),
        ):
            if weight and outputs is not None:
                teacher_logits = teacher.logits[: len(outputs.logits)]
                losses[name] = weight * kd_loss(outputs.logits, teacher_logits, self.temperature)
        return losses

    def _align(
        self, features: Sequence[Tensor], regions: Sequence[Tensor], targets: Sequence[Tensor]
    ) -> list[Tensor]:
        """Bring the student's levels to the shapes of the teacher's.

        Args:
            features (Sequence[Tensor]): Levels of the student, each (B, C, H, W).
            regions (Sequence[Tensor]): What RAA made of them, each (B, raa_dim, grid, grid).
            targets (Sequence[Tensor]): Levels of the teacher, each (B, C', H', W').

        Returns:
            list[Tensor]: Maps of the shapes of the targets.
        """
        sizes = [target.shape[-2:] for target in targets]
        if "raa" in self.alignment:
            coarse = [align(x, size) for align, x, size in zip(self.aligners, regions, sizes)]
        if self.alignment != "raa":
            fine = [project(x, size) for project, x, size in zip(self.projectors, features, sizes)]
        if self.alignment == "raa":
            return coarse
        if self.alignment != "projector+raa":
            return fine
        return [x + gate[:, None, None] * y for x, gate, y in zip(fine, self.gates, coarse)]

    def _forward_prompted(
        self,
        aligned: Sequence[Tensor],
        teacher: NetworkOutputs,
        frozen_teacher: PromptableTeacher,
    ) -> NetworkOutputs:
        """Run the prompted teacher on its share of the batch, and keep the feedback.

        Args:
            aligned (Sequence[Tensor]): Aligned levels of the student.
            teacher (NetworkOutputs): The plain teacher's outputs.
            frozen_teacher (PromptableTeacher): Runs the teacher.
        """
        num_images = math.ceil(len(aligned[0]) * self.prompted_share)
        sizes: dict[str, Sequence[int]] = {}

        def encode_gap(stage: str, outputs: NetworkOutputs) -> Tensor:
            level = self.stage_features[int(stage)]
            student_feature = aligned[level][:num_images].detach()
            teacher_feature = outputs.features[level][:num_images].detach()
            if self.distance == "correlation":  # which leaves the student's scale free
                student_feature = match_channel_statistics(student_feature, teacher_feature)
            gap = student_feature - teacher_feature
            if self.normalize_feedback:
                gap = standardize_channels(gap)
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
        return prompted

    def _target(self, prompted: Tensor, plain: Tensor) -> Tensor:
        """Return a level of the teacher to compare the student's first images with.

        Args:
            prompted (Tensor): Level of the prompted teacher, (n, C, H, W).
            plain (Tensor): Level of the plain teacher, (B, C, H, W).

        Returns:
            Tensor: Of n images, or of all where the level lies before the first prompt.
        """
        if not prompted.requires_grad:
            return plain
        if self.renormalize_target:
            return match_channel_statistics(prompted, plain[: len(prompted)])
        return prompted

    def _feature_losses(
        self,
        aligned: Sequence[Tensor],
        regions: Sequence[Tensor],
        targets: Sequence[Tensor],
        plain: Sequence[Tensor],
    ) -> dict[str, Tensor]:
        """Return the losses that compare features.

        Args:
            aligned (Sequence[Tensor]): Aligned levels of the student, each (B, C, H, W).
            regions (Sequence[Tensor]): Regions of the student, each (B, raa_dim, grid, grid).
            targets (Sequence[Tensor]): Levels for the first images, each (n, C, H, W).
            plain (Sequence[Tensor]): Levels of the plain teacher, which the other images are
                compared with, each (B, C, H, W).
        """
        if self.distance == "correlation" or self.region_weight:
            weights = spread_weights(plain, self.weigh_levels)
            whole = [
                x if len(x) == len(y) else torch.cat([x, y[len(x) :]])
                for x, y in zip(targets, plain)
            ]
        if self.distance == "correlation":
            distances = map(channel_correlation_loss, aligned, whole, weights)
        else:
            distances = map(self._raw_distance, aligned, targets, plain)
        losses = {"loss_fd": self.fd_weight * sum(distances)}
        if self.region_weight:
            distances = map(self._region_distance, self.region_heads, regions, whole, weights)
            losses["loss_region"] = self.region_weight * sum(distances)
        return losses

    def _raw_distance(self, aligned: Tensor, target: Tensor, plain: Tensor) -> Tensor:
        """Return the mean distance over images; arguments as in :meth:`_feature_losses`."""
        distance = self.hcl_loss if self.distance == "hcl" else _mse
        batch, num_images = len(aligned), len(target)
        prompted = distance(aligned[:num_images], target)
        if num_images == batch:
            return prompted
        others = distance(aligned[num_images:], plain[num_images:])
        return (num_images * prompted + (batch - num_images) * others) / batch

    def _region_distance(
        self, head: nn.Module, regions: Tensor, target: Tensor, weight: Tensor
    ) -> Tensor:
        """Compare the regions of a level with the averages of its target over them.

        Args:
            head (nn.Module): Leads to the target's channels.
            regions (Tensor): RAA's output, (B, raa_dim, grid, grid).
            target (Tensor): Level of the teacher, (B, C, H, W).
            weight (Tensor): Weights of its channels, (C,).
        """
        predicted = head(regions, regions.shape[-2:])
        # A map with fewer positions than regions is compared position by position.
        size = [min(pair) for pair in zip(regions.shape[-2:], target.shape[-2:])]
        predicted, target = (F.adaptive_avg_pool2d(x, size) for x in (predicted, target))
        return channel_correlation_loss(predicted, target, weight)

    def resume_state(self) -> dict[str, Tensor]:
        """Return the feedback of the last batch, for ``prompt='channel'``."""
        resumable = self.prompt == "channel" and self.feedback == "previous"
        return dict(self._previous) if resumable else {}

    def load_resume_state(self, state: dict[str, Tensor]) -> None:
        """Restore the feedback on the device of the parameters; say so if there is none."""
        if self.prompt == "spatial" and self.feedback == "previous":
            print_log(
                "prompt='spatial': the feedback of the last batch is not kept, as it is large; it "
                "begins with zeros, so this run is close to the unbroken one, not equal",
                "current",
                logging.WARNING,
            )
        for stage, value in state.items():
            self._previous[stage] = value.to(self.prompts[stage].beta.device)


def _mse(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared error in full precision."""
    return F.mse_loss(student.float(), teacher.float())


def _init_as_released(module: nn.Module) -> None:
    """Initialise a layer as the released code does."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
    else:
        return
    if module.bias is not None:
        nn.init.zeros_(module.bias)
