"""Figures of what a distiller does on a fixed set of images."""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from mmengine.dataset import pseudo_collate
from torch import Tensor, nn
from torch.utils.data import Dataset

from pat_mmdet.evaluation.features import MIN_BATCH, MinibatchCKA
from pat_mmdet.models.distillers import BaseDistiller, eval_mode
from pat_mmdet.models.methods import PAT
from pat_mmdet.models.task_modules import find_stages
from pat_mmdet.models.task_modules.classifier_reader import ClassifierReader
from pat_mmdet.structures import NetworkOutputs

from .feature_figures import draw_attention, draw_prompts


class PATOutputs(NamedTuple):
    """Intermediate results of PAT on a batch.

    Attributes:
        attention (Tensor, optional): RAA's weights, (B, S, g, g, S, g, g), the mean over heads;
            None for an alignment without regions.
        plain (NetworkOutputs): Outputs of the plain teacher.
        prompted (NetworkOutputs, optional): Those of the prompted one; None without prompts.
    """

    attention: Tensor | None
    plain: NetworkOutputs
    prompted: NetworkOutputs | None


class DistillerFigures:
    """Draw attention over regions, the effect of prompts, and the similarity of stages.

    All figures are of the same images, in eval mode and without gradient; nothing of the distiller
    changes. Stages are those of both backbones.

    Args:
        distiller (BaseDistiller): The distiller.
        dataset (Dataset): Dataset with the pipeline of an evaluation.
        stage_configs (tuple, optional): ``student_stages`` and ``teacher_stages`` of the config,
            each None for a backbone whose stages are known.
        num_images (int): Images for the similarity of stages, spread evenly over the dataset.
        batch_size (int): Images of a batch, at least 4.
        image (int): Index of the image that is drawn.
        region (Sequence[int], optional): Row and column of the region whose attention is drawn,
            from 0; by default the one in the middle.

    Raises:
        ValueError: If the image or region does not exist, images are too few, or stages are
            unknown.
    """

    def __init__(
        self,
        distiller: BaseDistiller,
        dataset: Dataset,
        stage_configs: tuple[Sequence[dict] | None, Sequence[dict] | None] = (None, None),
        num_images: int = 32,
        batch_size: int = 8,
        image: int = 0,
        region: Sequence[int] | None = None,
    ) -> None:
        if not 0 <= image < len(dataset):
            raise ValueError(f"image={image}: the dataset has the images 0 to {len(dataset) - 1}")
        self._distiller = distiller
        self._region = self._check_region(region)
        self._student_stages = stage_configs[0]
        self._teacher_reader = _stage_reader(distiller.teacher, stage_configs[1], "teacher")
        self._student_reader = _stage_reader(distiller.student, stage_configs[0], "student")
        self._batches = self._load(dataset, image, num_images, max(batch_size, MIN_BATCH))

    def _check_region(self, region: Sequence[int] | None) -> tuple[int, int]:
        """Return the region, or that in the middle.

        Raises:
            ValueError: If it does not exist.
        """
        grid = getattr(self._distiller.distill, "raa_grid", 1)
        if region is None:
            return (grid // 2, grid // 2)
        if len(region) != 2 or not all(0 <= place < grid for place in region):
            raise ValueError(
                f"region={tuple(region)}: give row and column, 0 to {grid - 1} (raa_grid={grid})"
            )
        return (region[0], region[1])

    def _load(
        self, dataset: Dataset, image: int, num_images: int, batch_size: int
    ) -> list[list[dict]]:
        """Return batches of samples, of which the first begins with the image to draw.

        Raises:
            ValueError: If there is no whole batch.
        """
        spread = np.linspace(0, len(dataset) - 1, min(num_images, len(dataset))).astype(int)
        indices = [image, *(index for index in spread.tolist() if index != image)]
        parts = [indices[i : i + batch_size] for i in range(0, len(indices), batch_size)]
        batches = [[dataset[i] for i in part] for part in parts if len(part) >= MIN_BATCH]
        if not batches:
            raise ValueError(
                f"{len(indices)} images are too few for CKA, which needs at least {MIN_BATCH}"
            )
        return batches

    def _prepare(self, samples: Sequence[dict]) -> dict[str, Any]:
        """Return a batch on the student's device, normalised for it."""
        return self._distiller.data_preprocessor(pseudo_collate(samples), False)

    def draw(self) -> dict[str, Figure]:
        """Return the figures ``attention`` and ``prompts``, as far as the method has any."""
        figures: dict[str, Figure] = {}
        if not isinstance(self._distiller.distill, PAT):
            return figures
        data = self._prepare(self._batches[0])
        image = self._first_image(data["inputs"])
        outputs = compute_pat(self._distiller, **data)
        if outputs.attention is not None:
            figures["attention"] = draw_attention(outputs.attention[0], image, self._region)
        if outputs.prompted is not None:
            names = [
                f"level {i + 1} ({x.shape[2]}×{x.shape[3]})"
                for i, x in enumerate(outputs.plain.features)
            ]
            figures["prompts"] = draw_prompts(
                outputs.plain.features, outputs.prompted.features, image, names
            )
        return figures

    def _first_image(self, inputs: Tensor) -> np.ndarray:
        """Return the first image of a batch with its padding, (H, W, 3), RGB, 0 to 255."""
        preprocessor = self._distiller.data_preprocessor
        image = inputs[0]
        if getattr(preprocessor, "_enable_normalize", False):
            image = image * preprocessor.std + preprocessor.mean
        # mmdet's and mmpretrain's name for a swap of the channels of BGR images.
        names = ("_channel_conversion", "to_rgb")
        if not any(getattr(preprocessor, name, False) for name in names):
            image = image.flip(0)
        return image.permute(1, 2, 0).clamp(0, 255).byte().cpu().numpy()

    def cka(self, student: nn.Module | None = None) -> Tensor:
        """Return the CKA of the stages of a student and the teacher, (S, T).

        Args:
            student (nn.Module, optional): Another network like the student, in its place.
        """
        reader = self._student_reader
        if student is None:
            student = self._distiller.student
        else:
            reader = _stage_reader(student, self._student_stages, "student")
        teacher = self._distiller.frozen_teacher
        cka = MinibatchCKA()
        with eval_mode(student, teacher.network):
            for samples in self._batches:
                data = self._prepare(samples)
                images = teacher.renormalise(data["inputs"], data["data_samples"])
                cka.update(
                    _stage_features(student, reader, data["inputs"]),
                    _stage_features(teacher.network, self._teacher_reader, images),
                )
        return cka.compute()


def compute_pat(distiller: BaseDistiller, inputs: Tensor, data_samples: list) -> PATOutputs:
    """Return what PAT computes on a batch, and leave the distiller as it is.

    With ``feedback='previous'`` the prompts see the feedback of this batch, from a pass before.

    Args:
        distiller (BaseDistiller): A distiller with PAT.
        inputs (Tensor): Images (B, 3, H, W), normalised for the student.
        data_samples (list): Their annotations.
    """
    method = copy(distiller.distill)  # shares the layers, but has a feedback of its own
    observed: list[tuple] = []
    method.observer = lambda *tensors: observed.append(tensors)
    devices = [inputs.device] if inputs.is_cuda else []
    # Proposals are sampled at random.
    with torch.random.fork_rng(devices), eval_mode(distiller.student, distiller.distill):
        _, activations = distiller.forward_student(inputs, data_samples)
        student, teacher = distiller.collect_outputs(inputs, data_samples, activations)
        for _ in range(2):
            method(student, teacher, distiller.frozen_teacher)
        attention = None
        if hasattr(method, "raa"):
            attention = method.raa.attention(student.features).mean(1)
    distiller.frozen_teacher.release()
    *_, plain, prompted = observed[-1]
    return PATOutputs(attention, plain, prompted)


def _stage_reader(
    network: nn.Module, configs: Sequence[dict] | None, role: str
) -> ClassifierReader:
    """Return the reader of a network's stages."""
    return ClassifierReader(network, find_stages(network, configs, role), embedding=False)


def _stage_features(
    network: nn.Module, reader: ClassifierReader, images: Tensor
) -> Sequence[Tensor]:
    """Return the outputs of the stages for normalised images (B, 3, H, W)."""
    with reader.recording() as activations:
        network.extract_feat(images)
    return reader.read(activations).features
