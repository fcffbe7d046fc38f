"""Distilling a classifier."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.registry import MODELS
from torch import Tensor, nn

from pat_mmdet.models.distillers.base import BaseDistiller
from pat_mmdet.models.methods.base import Prompted
from pat_mmdet.models.task_modules import Prompt, Prompter, Recorder
from pat_mmdet.models.task_modules.stages import Stage, backbone_stages
from pat_mmdet.structures import FeatureSpec, NetworkOutputs


@MODELS.register_module()
class ClassificationDistiller(BaseDistiller):
    """Distils between classifiers of mmpretrain, timm models in its ``TimmClassifier`` included.

    Features are the outputs of the backbone's stages as maps, tokens without the class token.
    Logits (B, K) and the embedding (B, D), what the last linear layer gets, are those of the
    student's one training pass. With mixup or cutmix, labels are the stronger class.

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
        ValueError: If a path does not exist, or the stages of a network are not known.
    """

    task = "classification"

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

    def _register_hooks(self) -> None:
        own, other = self._stage_configs
        self._student_stages = self._stages("student", own, {"features", "student_features"})
        self._teacher_stages = self._stages("teacher", other, {"features", "prompted"})
        _refuse_recomputation(self.student, self._student_stages)
        _refuse_recomputation(self.teacher, self._teacher_stages)
        student_inputs, teacher_inputs = {"logits": (_loss_module(self.student), 0)}, {}
        if "embedding" in self.needs:
            student_inputs["embedding"] = (_classifier(self.student), 0)
            teacher_inputs["embedding"] = (_classifier(self.teacher), 0)
        self._recorder = _recorder(self.student, self._student_stages, student_inputs)
        # On the teacher's holder, which EMA's deep copy of this model shares.
        self._frozen.recorder = _recorder(self.teacher, self._teacher_stages, teacher_inputs)
        self._frozen.prompter = Prompter(
            self.teacher, self._teacher_stages if "prompted" in self.needs else ()
        )

    def _stages(
        self, role: str, configs: Sequence[dict] | None, for_needs: set[str]
    ) -> tuple[Stage, ...]:
        """The stages of a network, if the method reads any of them."""
        if not self.needs & for_needs:
            return ()
        if configs is None:
            network = getattr(self, role)
            name = "model" if hasattr(network, "model") else "backbone"
            stages = backbone_stages(getattr(network, name), name, role)
        else:
            stages = tuple(Stage(**cfg) for cfg in configs)
        for stage in stages:
            if stage.end is None:
                raise ValueError(
                    f"the stage that begins at {stage.begin!r} has no end; name the module whose "
                    "output is its feature: dict(begin=..., end=...)"
                )
        return stages

    def _find_shapes(self, image: Tensor) -> tuple[FeatureSpec, FeatureSpec]:
        entries: dict[int, tuple[int, int, int]] = {}

        def note(index: int, x: Tensor) -> Tensor:
            entries[index] = tuple(x.shape[1:])
            return x

        with _explain_input_size_error("student", image), self._recorder.recording() as records:
            logits = self.student(image, mode="tensor")
            student = _view(self._student_stages, {**records, "logits": [logits]})
        with _explain_input_size_error("teacher", image), self._frozen.prompter.prompting(note):
            teacher = self._teacher_view(image)
        for index, stage in enumerate(self._teacher_stages):
            if "prompted" in self.needs and index not in entries:
                raise ValueError(f"the module {stage.begin!r} of a stage is not run")
        return (
            _spec(student, self._student_stages),
            _spec(
                teacher,
                self._teacher_stages,
                stage_inputs=tuple(entries[i] for i in sorted(entries)),
                stage_features=tuple(range(len(entries))),
            ),
        )

    def collect_outputs(
        self, inputs: Tensor, data_samples: list, records: dict[str, list]
    ) -> tuple[NetworkOutputs, NetworkOutputs, Prompted]:
        """Shows both networks to the method, as in :class:`BaseDistiller`."""
        student = _view(self._student_stages, records)
        _add_targets(student, data_samples, "indices" in self.needs)
        images = self._renormalised(inputs)
        with self._plain_pass() as kept:
            teacher = self._teacher_view(images)

        def prompted(prompt: Prompt, count: int | None = None) -> NetworkOutputs:
            with self._prompting(prompt, kept, count):
                return self._teacher_view(images[:count])

        return student, teacher, prompted

    def _teacher_view(self, images: Tensor) -> NetworkOutputs:
        """Runs the parts of the teacher that the method asked for."""
        with self._frozen.recorder.recording() as records:
            if self.needs & {"logits", "teacher_logits", "embedding"}:
                records["logits"] = [self.teacher(images, mode="tensor")]
            else:
                self.teacher.extract_feat(images)
        return _view(self._teacher_stages, records)


def _recorder(
    network: nn.Module, stages: Sequence[Stage], inputs: dict[str, tuple[str, int]]
) -> Recorder:
    """Taps the ends of the stages, and the inputs that are asked for."""
    outputs = {f"stage{i}": stage.end for i, stage in enumerate(stages)}
    sizes = {
        f"size{i}": (stage.end, 1)
        for i, stage in enumerate(stages)
        if stage.layout == "NLC" and stage.grid is None
    }
    return Recorder(network, {**sizes, **inputs}, outputs)


def _view(stages: Sequence[Stage], records: dict[str, list]) -> NetworkOutputs:
    """Makes a view of what was recorded in one pass."""
    features = []
    for i, stage in enumerate(stages):
        if f"stage{i}" not in records:
            raise ValueError(f"the module {stage.end!r} of a stage is not run")
        size = records.get(f"size{i}", [None])[0]
        features.append(stage.to_map(records[f"stage{i}"][0], (None, size))[0])
    fields = {name: records[name][0] for name in ("logits", "embedding") if name in records}
    return NetworkOutputs(features, **fields)


def _spec(view: NetworkOutputs, stages: Sequence[Stage], **inputs: tuple) -> FeatureSpec:
    """Describes a network by the view of a dry run."""
    return FeatureSpec(
        features=tuple(tuple(x.shape[1:]) for x in view.features),
        num_classes=None if view.logits is None else view.logits.shape[1],
        embedding=None if view.embedding is None else view.embedding.shape[1],
        tokens=any(stage.layout != "NCHW" for stage in stages),
        **inputs,
    )


def _add_targets(view: NetworkOutputs, data_samples: list, indices: bool) -> None:
    """Puts the labels into a student's view, and the images' places in the data set."""
    device = view.logits.device
    if "gt_score" in data_samples[0]:
        view.soft_labels = torch.stack([sample.gt_score for sample in data_samples]).to(device)
        view.labels = view.soft_labels.argmax(1)
    else:
        view.labels = torch.cat([sample.gt_label for sample in data_samples]).to(device)
    if indices:
        view.indices = torch.tensor([sample.sample_idx for sample in data_samples], device=device)


def _classifier(network: nn.Module) -> str:
    """Finds the path of the last linear layer, which makes the logits.

    Distilled DeiT has two: that of the class token is taken.

    Raises:
        ValueError: If there is none.
    """
    modules = dict(network.named_modules())
    linear = [name for name in modules if isinstance(modules[name], nn.Linear)]
    if hasattr(network, "model"):
        found = network.model.get_classifier()
        classifier = found[0] if isinstance(found, tuple) else found
        linear = [name for name in linear if modules[name] is classifier]
    else:
        linear = [name for name in linear if name.startswith("head.") and "dist" not in name]
    if not linear:
        raise ValueError(
            f"{type(network).__name__} has no linear classifier in its head; give num_classes in "
            "its config"
        )
    return linear[-1]


def _loss_module(network: nn.Module) -> str:
    """The path of the loss of an mmpretrain classifier."""
    return "loss_module" if hasattr(network, "loss_module") else "head.loss_module"


def _refuse_recomputation(network: nn.Module, stages: Sequence[Stage]) -> None:
    """Refuses activation checkpointing in timm models, under which hooks fire twice or never.

    Raises:
        ValueError: If it is on and the network is tapped.
    """
    if stages and getattr(network, "with_cp", False) and hasattr(network, "model"):
        raise ValueError(
            "with_cp=True of TimmClassifier runs parts of the network a second time, past the "
            "hooks that read its features; leave it out (for a teacher, "
            "model.recompute_teacher=True does the same), or take a method on logits alone"
        )


@contextmanager
def _explain_input_size_error(role: str, image: Tensor) -> Iterator[None]:
    """Says which network does not take images of the configured size.

    Raises:
        ValueError: If the code inside fails, as networks of a fixed size do for others.
    """
    try:
        yield
    except (AssertionError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"the {role} does not take images of model.input_size={tuple(image.shape[2:])} "
            f"({reason}); change it, or img_size in the {role}'s config"
        ) from error
