"""What distillers of every task have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from copy import deepcopy
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from pat_mmdet.models.acceleration.blocks import compile_blocks, recompute_blocks
from pat_mmdet.models.acceleration.fast_layers import use_fast_layers
from pat_mmdet.models.methods.base import Prompted
from pat_mmdet.models.task_modules import PrefixCache, Prompt
from pat_mmdet.registry import build_method, method_class
from pat_mmdet.structures import FeatureSpec, NetworkOutputs
from pat_mmdet.utils.checkpoint import load_weights
from pat_mmdet.utils.config import teacher_model

_METHOD = "distill."
_STUDENT = "student."


class FrozenTeacher:
    """Keeps the teacher out of the module tree.

    As no :class:`torch.nn.Module`, it adds no parameter, checkpoint entry or optimizer group,
    and distributed training does not broadcast it. A deep copy (EMA makes one of the whole
    model) shares it.

    Attributes:
        network (nn.Module): The teacher, in eval mode and without gradients to its weights.
    """

    def __init__(self, network: nn.Module) -> None:
        network.eval()
        network.requires_grad_(False)
        self.network = network

    def __deepcopy__(self, memo: dict) -> FrozenTeacher:
        return self


class BaseDistiller(BaseModel):
    """Trains a student with a frozen teacher and a method.

    Checkpoints hold the student's weights under the student's own names, so that they load into
    the plain student, and the method's under ``distill.``. The teacher is not in them.

    Args:
        student (dict): Config of the student.
        teacher (dict | str): Config of the teacher, or the path of a config file with it as
            ``model``, see :func:`pat_mmdet.utils.teacher_model`.
        method (dict): Config of the method: ``type`` and its arguments. Arguments that hold for
            one task only may stand in a dict under the task's name.
        teacher_checkpoint (str, optional): Path or URL of the teacher's weights. ``None``, which
            must be written out, leaves the teacher to its own ``init_cfg``; with one, no other
            weights are fetched.
        input_size (Sequence[int], optional): (height, width) of the image on which shapes are
            found. Older configs give it among the arguments of the method.
        fast_teacher (bool): Whether layers of the teacher are computed in faster forms, which give
            the same to rounding: see :mod:`pat_mmdet.models.acceleration.fast_layers`.
        teacher_dtype (str, optional): ``'bfloat16'`` or ``'float16'`` for the passes of the teacher
            alone; losses and prompts stay in full precision.
        recompute_teacher (bool): Whether the backward pass through the prompted teacher runs its
            blocks once more instead of keeping what is in them: less memory, more time.
        compile (bool): Whether the blocks of both networks are compiled.
        data_preprocessor (dict, optional): Config for the networks that have none of their own.
            mmengine gives that of the top level of a config.

    Raises:
        FileNotFoundError: If the teacher's checkpoint does not exist.
        ValueError: If the checkpoint does not fit the teacher, or the networks do not fit the
            method.
    """

    task: str
    # Set by DistillWeightHook; without it the method's losses are taken as they are.
    distill_weight: float | None = None

    def __init__(
        self,
        student: dict,
        teacher: dict | str,
        method: dict,
        teacher_checkpoint: str | None,
        input_size: Sequence[int] | None = None,
        fast_teacher: bool = True,
        teacher_dtype: str | None = None,
        recompute_teacher: bool = False,
        compile: bool = False,
        data_preprocessor: dict | None = None,
    ) -> None:
        teacher = teacher_model(teacher, teacher_checkpoint)
        if data_preprocessor is not None:
            student, teacher = (
                {"data_preprocessor": deepcopy(data_preprocessor), **cfg}
                for cfg in (student, teacher)
            )
        self._teacher_dtype = _half(teacher_dtype)
        network = MODELS.build(student)
        super().__init__(data_preprocessor=network.data_preprocessor)
        self.student = network
        method = task_settings(method, self.task)
        input_size = _one_input_size(input_size, method.pop("input_size", None))
        # With the random state kept, a student begins with the same weights as when it is trained
        # alone with the same seed.
        with torch.random.fork_rng(devices=[]):
            teacher_network = MODELS.build(teacher)
            if teacher_checkpoint is None:
                teacher_network.init_weights()
            else:
                load_weights(teacher_network, teacher_checkpoint)
            if fast_teacher:
                use_fast_layers(teacher_network)
            # Through __dict__: an ordinary attribute could be mistaken for a submodule one day.
            self.__dict__["_frozen"] = FrozenTeacher(teacher_network)
            self.method_name = method.get("type")
            self.needs = method_class(method).needed(method)
            self._same_images = _same_normalisation(
                self.student.data_preprocessor, teacher_network.data_preprocessor
            )
            self._register_hooks()
            image = torch.zeros(1, 3, *input_size)
            with _dry_run(self.student, self.teacher):
                shapes = self._find_shapes(image)
            self.distill = build_method(method, *shapes)
            if "prompted" in self.needs:
                stage = self._teacher_stages[self.distill.first_prompt]
                self._frozen.prefix = PrefixCache(
                    self.teacher,
                    stage.begin,
                    run=lambda: self.teacher.extract_feat(image),
                    read=[stage.end for stage in self._teacher_stages if stage.end],
                )
            # After the hooks, which compiled code would not have seen otherwise.
            if recompute_teacher:
                recompute_blocks(self.teacher)
            if compile:
                compile_blocks(self.student)
                compile_blocks(self.teacher)

    @property
    def teacher(self) -> nn.Module:
        """nn.Module: The teacher, which is no submodule."""
        return self._frozen.network

    @abstractmethod
    def _register_hooks(self) -> None:
        """Registers the hooks on student and teacher that the method needs."""

    @contextmanager
    def _plain_pass(self) -> Iterator[dict[str, Any]]:
        """The setting of the plain pass; gives what the prompted one need not compute again."""
        prefix = self._frozen.prefix.capture() if "prompted" in self.needs else nullcontext({})
        with torch.no_grad(), self._teacher_precision(), prefix as kept:
            yield kept

    @contextmanager
    def _prompting(
        self, prompt: Prompt, kept: dict[str, Any], images: int | None
    ) -> Iterator[None]:
        """Has the teacher run with prompts, from the first of them on."""
        with (
            self._teacher_precision(),
            self._frozen.prompter.prompting(prompt),
            self._frozen.prefix.replay(kept, images),
        ):
            yield

    @abstractmethod
    def _find_shapes(self, image: Tensor) -> tuple[FeatureSpec, FeatureSpec]:
        """Runs both networks on an image (1, 3, H, W) and gives their shapes."""

    @abstractmethod
    def collect_outputs(
        self, inputs: Tensor, data_samples: list, records: dict[str, list]
    ) -> tuple[NetworkOutputs, NetworkOutputs, Prompted]:
        """Shows both networks to the method; the plain pass of the teacher is made here.

        Args:
            inputs (Tensor): Normalised images (B, 3, H, W), as the student had them.
            data_samples (list): Their annotations.
            records (dict[str, list]): What was recorded in the student's one pass.

        Returns:
            tuple: The arguments of :meth:`BaseMethod.forward`.
        """

    def record_student(
        self, inputs: Tensor, data_samples: list
    ) -> tuple[dict[str, Tensor], dict[str, list]]:
        """Trains the student as it would be trained alone; gives its losses and what it showed."""
        with self._recorder.recording() as records:
            losses = self.student(inputs, data_samples, mode="loss")
        return losses, records

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Computes the student's own losses and those of the method.

        Args:
            inputs (Tensor): Normalised images (B, 3, H, W), mixed if the student's preprocessor
                mixes them.
            data_samples (list): Their annotations.

        Returns:
            dict[str, Tensor]: All losses by name.
        """
        losses, records = self.record_student(inputs, data_samples)
        losses.update(
            self._apply_distill_weight(
                lambda: self.distill(*self.collect_outputs(inputs, data_samples, records))
            )
        )
        return losses

    def _teacher_precision(self) -> torch.autocast | nullcontext:
        """The precision of the teacher's passes, if it has one of its own."""
        if self._teacher_dtype is None:
            return nullcontext()
        device = next(self.teacher.parameters()).device.type
        return torch.autocast(device, dtype=self._teacher_dtype)

    def _renormalised(self, inputs: Tensor) -> Tensor:
        """Normalises the student's images (B, 3, H, W) as the teacher's preprocessor would."""
        if self._same_images:
            return inputs
        own_mean, own_std, own_rgb = _normalisation(self.student.data_preprocessor)
        mean, std, rgb = _normalisation(self.teacher.data_preprocessor)
        pixels = inputs * own_std.to(inputs) + own_mean.to(inputs)
        if own_rgb != rgb:
            pixels = pixels.flip(1)
        return (pixels - mean.to(inputs)) / std.to(inputs)

    def _apply_distill_weight(self, compute: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """Applies the weight of the step to the method's losses.

        Args:
            compute (Callable): Runs the teacher and the method; not called for the weight 0.

        Returns:
            dict[str, Tensor]: The losses by name, and the weight for the log.
        """
        weight = self.distill_weight
        if weight is None:
            return compute()
        logged = next(self.student.parameters()).new_tensor(weight)
        if weight == 0:
            # Distributed training waits for a gradient of every parameter.
            idle = sum((param.sum() for param in self.distill.parameters()), logged)
            return {"loss_distill": 0 * idle, "distill_weight": logged}
        losses = {name: weight * value for name, value in compute().items()}
        return {**losses, "distill_weight": logged}

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor"
    ) -> Any:
        """Trains with the method in mode ``'loss'``; otherwise runs the student alone."""
        if mode == "loss":
            return self.loss(inputs, data_samples)
        return self.student(inputs, data_samples, mode=mode)

    def train(self, mode: bool = True) -> BaseDistiller:
        """Sets the mode of student and method; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> BaseDistiller:
        """Moves and casts the teacher with the rest (``.to()``, ``.cuda()``, ``.half()``)."""
        super()._apply(fn, *args, **kwargs)
        self.teacher._apply(fn, *args, **kwargs)
        return self

    def state_dict(
        self,
        *args: Any,
        destination: dict | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict:
        """Gives the student's entries under their own names and the method's under ``distill.``.

        The student is asked as a module on its own, so that hooks which rename its keys (those
        of wrappers of other libraries) do as they would without a distiller.
        """
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()
        parts = (
            (prefix, self.student.state_dict(keep_vars=keep_vars)),
            (prefix + _METHOD, self.distill.state_dict(keep_vars=keep_vars)),
        )
        for start, state in parts:
            destination.update({start + key: value for key, value in state.items()})
            for key, value in getattr(state, "_metadata", {}).items():
                destination._metadata[(start + key).rstrip(".")] = value
        return destination

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Gives the student's keys the prefix that they have inside this module."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key[len(prefix) :]
            if not name.startswith((_METHOD, _STUDENT)):
                state_dict[prefix + _STUDENT + name] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def task_settings(method: dict, task: str) -> dict:
    """Merges a method's arguments for one task into the others, which have priority."""
    common = {key: method[key] for key in method if key not in ("detection", "classification")}
    return {**method.get(task, {}), **common}


def _one_input_size(size: Sequence[int] | None, of_method: Sequence[int] | None) -> Sequence[int]:
    """Return the input size, given to the distiller or, in older configs, to the method.

    Raises:
        ValueError: If there is none, or there are two.
    """
    if size is None and of_method is None:
        raise ValueError(
            "model.input_size is not set; give the (height, width) of the training images, for "
            "example (800, 1216) for COCO"
        )
    if size is not None and of_method is not None and tuple(size) != tuple(of_method):
        raise ValueError(
            f"model.input_size={tuple(size)} and model.method.input_size={tuple(of_method)} "
            "differ; remove the second"
        )
    return of_method if size is None else size


def _half(name: str | None) -> torch.dtype | None:
    """Looks up a half precision.

    Raises:
        ValueError: If it is none.
    """
    known = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"model.teacher_dtype={name!r}; known: None, 'bfloat16', 'float16'")
    return known[name]


@contextmanager
def _dry_run(*networks: nn.Module) -> Iterator[None]:
    """Eval mode without gradients, leaving the modes as they were."""
    modes = [(module, module.training) for net in networks for module in net.modules()]
    for network in networks:
        network.eval()
    with torch.no_grad():
        yield
    for module, training in modes:
        module.training = training


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
    # mmdet's and mmpretrain's name for it.
    swapped = getattr(preprocessor, "_channel_conversion", getattr(preprocessor, "to_rgb", False))
    return mean, std, swapped
