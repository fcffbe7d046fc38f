"""The frozen teacher: all that is computed with it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from pat_mmdet.models.task_modules import Activations, PrefixCache, Prompter, Stage
from pat_mmdet.models.task_modules.classifier_reader import ClassifierReader
from pat_mmdet.models.task_modules.score_readers import DenseScores, RoIScores, Scores
from pat_mmdet.structures import FeatureSpec, NetworkOutputs, Prompt, Requires


class FrozenTeacher(ABC):
    """A frozen network, run plain and with prompts on the student's images.

    It is no :class:`torch.nn.Module`, and so adds no parameter, checkpoint entry or optimizer
    group to a distiller, and distributed training does not broadcast it. A deep copy (EMA makes
    one of the whole model) shares it.

    :meth:`forward` remembers the batch for :meth:`forward_prompted`, until :meth:`release`.

    Args:
        network (nn.Module): The teacher; set to eval mode, its parameters need no gradient.
        student_preprocessor (nn.Module): Data preprocessor of the student, which normalises the
            images that come in.
        requires (Requires): What the method reads.
        stages (Sequence[Stage]): Stages whose inputs are prompted.
        dtype (torch.dtype, optional): Half precision of its passes; by default that of the
            training.

    Attributes:
        network (nn.Module): The teacher.
        stages (tuple[Stage, ...]): Stages whose inputs are prompted.
        prefix_cache (PrefixCache, optional): Activations that the prompted pass reuses.
    """

    def __init__(
        self,
        network: nn.Module,
        student_preprocessor: nn.Module,
        requires: Requires,
        stages: Sequence[Stage] = (),
        dtype: torch.dtype | None = None,
    ) -> None:
        network.eval()
        network.requires_grad_(False)
        self.network = network
        self.stages = tuple(stages)
        self.prefix_cache: PrefixCache | None = None
        self._requires = requires
        self._dtype = dtype
        self._preprocessors = (student_preprocessor, network.data_preprocessor)
        self._same_images = _same_normalisation(*self._preprocessors)
        self._prompter = Prompter(network, self.stages)
        self._images: Tensor | None = None

    def __deepcopy__(self, memo: dict) -> FrozenTeacher:
        return self

    def forward(
        self, images: Tensor, data_samples: list, student_activations: Activations
    ) -> NetworkOutputs:
        """Run the teacher without prompts and without gradient.

        Args:
            images (Tensor): Images (B, 3, H, W), normalised for the student.
            data_samples (list): Their annotations.
            student_activations (dict[str, list]): What was recorded in the student's pass.

        Returns:
            NetworkOutputs: What the method requires.
        """
        self._images = self.renormalise(images, data_samples)
        cache = nullcontext() if self.prefix_cache is None else self.prefix_cache.capture()
        with torch.no_grad(), self._precision(), cache:
            return self._forward_plain(self._images, data_samples, student_activations)

    def forward_prompted(self, prompt: Prompt, num_images: int | None = None) -> NetworkOutputs:
        """Run the prompted teacher on the batch of the last plain pass.

        What lies before the first prompted stage is taken from the cache.

        Args:
            prompt (Prompt): Changes the inputs of the stages from the method's
                ``first_prompted_stage`` on; gradients reach it.
            num_images (int, optional): Number of images, the first of the batch; all by default.

        Returns:
            NetworkOutputs: Outputs for these images; logits are those at the first rows of the
            plain ones.

        Raises:
            RuntimeError: If the method does not require prompts, or there was no plain pass.
        """
        if self.prefix_cache is None or self._images is None:
            raise RuntimeError(
                "forward_prompted needs a method whose `requires` has Requires.PROMPTS, and the "
                "plain pass of the step before it"
            )
        with (
            self._precision(),
            self._prompter.prompting(prompt),
            self.prefix_cache.replay(num_images),
        ):
            return self._forward(self._images[:num_images])

    def release(self) -> None:
        """Drop the batch and its cached activations."""
        self._images = None
        if self.prefix_cache is not None:
            self.prefix_cache.clear()

    def dry_run(self, image: Tensor) -> tuple[NetworkOutputs, tuple[tuple[int, int, int], ...]]:
        """Run the teacher once to find its shapes.

        Args:
            image (Tensor): An image (1, 3, H, W).

        Returns:
            tuple[NetworkOutputs, tuple]: The outputs, and (C, H, W) of the input of each stage.

        Raises:
            ValueError: If a stage is not run.
        """
        shapes: dict[int, tuple[int, int, int]] = {}

        def record_shape(stage: int, x: Tensor) -> Tensor:
            shapes[stage] = tuple(x.shape[1:])
            return x

        with self._prompter.prompting(record_shape):
            outputs = self._dry_forward(image)
        for index, stage in enumerate(self.stages):
            if index not in shapes:
                raise ValueError(
                    f"the module {stage.input_module!r} of a stage is not run; name modules in "
                    "model.teacher_stages that the network calls"
                )
        return outputs, tuple(shapes[index] for index in sorted(shapes))

    def cache_prefix(self, first_stage: int, image: Tensor) -> None:
        """Share between both passes what is computed before the first prompted stage.

        Args:
            first_stage (int): Index of that stage.
            image (Tensor): An image (1, 3, H, W), on which the order of the modules is observed.
        """
        self.prefix_cache = PrefixCache(
            self.network,
            self.stages[first_stage].input_module,
            run=lambda: self.network.extract_feat(image),
            observed=[stage.output_module for stage in self.stages if stage.output_module],
        )

    def renormalise(self, images: Tensor, data_samples: list) -> Tensor:
        """Normalise the student's images (B, 3, H, W) as the teacher's preprocessor would."""
        if self._same_images:
            return images
        student, teacher = map(_normalisation, self._preprocessors)
        pixels = images * student.std.to(images) + student.mean.to(images)
        if student.swapped != teacher.swapped:
            pixels = pixels.flip(1)
        return (pixels - teacher.mean.to(images)) / teacher.std.to(images)

    def to(self, *args: Any, **kwargs: Any) -> FrozenTeacher:
        """Move or cast the network, as :meth:`torch.nn.Module.to` does."""
        self.network.to(*args, **kwargs)
        return self

    def _apply(self, fn: Callable, recurse: bool = True) -> FrozenTeacher:
        """Move or cast the network together with a distiller."""
        self.network._apply(fn, recurse)
        return self

    def _precision(self) -> torch.autocast | nullcontext:
        """Return the context of the teacher's own precision, if it has one."""
        if self._dtype is None:
            return nullcontext()
        device = next(self.network.parameters()).device.type
        return torch.autocast(device, dtype=self._dtype)

    def _forward_plain(
        self, images: Tensor, data_samples: list, student_activations: Activations
    ) -> NetworkOutputs:
        """Run the network on renormalised images (B, 3, H, W), as the first pass of a step."""
        return self._forward(images)

    def _dry_forward(self, image: Tensor) -> NetworkOutputs:
        """Run the network on an image (1, 3, H, W) before the first step."""
        return self._forward(image)

    @abstractmethod
    def _forward(self, images: Tensor) -> NetworkOutputs:
        """Run the network on renormalised images (B, 3, H, W)."""


class ClassificationTeacher(FrozenTeacher):
    """A frozen classifier of mmpretrain.

    Args:
        reader (ClassifierReader): Reads the outputs that the method requires.
        *args: Arguments of :class:`FrozenTeacher`.
        **kwargs: Arguments of :class:`FrozenTeacher`.
    """

    def __init__(self, reader: ClassifierReader, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.reader = reader

    def describe(self, image: Tensor) -> FeatureSpec:
        """Return the shapes for an image (1, 3, H, W)."""
        return self.reader.describe(*self.dry_run(image))

    def _forward(self, images: Tensor) -> NetworkOutputs:
        with self.reader.recording() as activations:
            if self._requires & (Requires.TEACHER_LOGITS | Requires.EMBEDDING):
                activations["logits"] = [self.network(images, mode="tensor")]
            else:
                self.network.extract_feat(images)
        return self.reader.read(activations)


class DetectionTeacher(FrozenTeacher):
    """A frozen detector of MMDetection.

    Args:
        score_reader (RoIScores | DenseScores | None): Reads class scores and embeddings, if the
            method requires any.
        *args: Arguments of :class:`FrozenTeacher`.
        **kwargs: Arguments of :class:`FrozenTeacher`.
    """

    def __init__(
        self, score_reader: RoIScores | DenseScores | None, *args: Any, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.score_reader = score_reader
        self._levels: list[int] = []

    def select_levels(self, levels: Sequence[int]) -> None:
        """Set the feature levels that the method compares, by index."""
        self._levels = list(levels)

    def read_student(self, student_activations: Activations) -> Scores:
        """Return the student's scores at the locations of the last plain pass, with gradient.

        Args:
            student_activations (dict[str, list]): What was recorded in the student's pass.

        Returns:
            dict[str, Tensor]: Fields of :class:`NetworkOutputs`.
        """
        if self.score_reader is None:
            return {}
        return self.score_reader.read_student(student_activations)

    def renormalise(self, images: Tensor, data_samples: list) -> Tensor:
        """Normalise the student's images as the teacher's preprocessor would, padding too."""
        renormalised = super().renormalise(images, data_samples)
        if renormalised is images:
            return images
        padded = torch.full_like(renormalised, self.network.data_preprocessor.pad_value)
        for i, sample in enumerate(data_samples):
            height, width = sample.img_shape[:2]
            padded[i, :, :height, :width] = renormalised[i, :, :height, :width]
        return padded

    def _forward_plain(
        self, images: Tensor, data_samples: list, student_activations: Activations
    ) -> NetworkOutputs:
        features = self.network.extract_feat(images)
        scores = {}
        if self.score_reader is not None:
            scores = self.score_reader.sample(student_activations, features, data_samples)
        return NetworkOutputs(self._select(features), **scores)

    def _forward(self, images: Tensor) -> NetworkOutputs:
        features = self.network.extract_feat(images)
        scores = {} if self.score_reader is None else self.score_reader.read(features)
        return NetworkOutputs(self._select(features), **scores)

    def _dry_forward(self, image: Tensor) -> NetworkOutputs:
        return NetworkOutputs(self.network.extract_feat(image))

    def _select(self, features: Sequence[Tensor]) -> list[Tensor]:
        return [features[level] for level in self._levels]


class _Normalisation(NamedTuple):
    """Normalisation by a data preprocessor.

    Attributes:
        mean (Tensor): (3, 1, 1), in units of pixel values.
        std (Tensor): (3, 1, 1).
        swapped (bool): Whether channels are swapped before.
    """

    mean: Tensor
    std: Tensor
    swapped: bool


def _normalisation(preprocessor: nn.Module) -> _Normalisation:
    if getattr(preprocessor, "_enable_normalize", False):
        mean, std = preprocessor.mean, preprocessor.std
    else:
        mean, std = torch.zeros(3, 1, 1), torch.ones(3, 1, 1)
    # mmdet's and mmpretrain's name for it.
    swapped = getattr(preprocessor, "_channel_conversion", getattr(preprocessor, "to_rgb", False))
    return _Normalisation(mean, std, swapped)


def _same_normalisation(first: nn.Module, second: nn.Module) -> bool:
    """Return True if two preprocessors normalise images alike."""
    a, b = _normalisation(first), _normalisation(second)
    return a.swapped == b.swapped and torch.equal(a.mean, b.mean) and torch.equal(a.std, b.std)
