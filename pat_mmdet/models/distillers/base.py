"""Base class of distillers."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from typing import Any, Literal

import torch
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor, nn

from pat_mmdet.models.acceleration import compile_blocks, recompute_blocks, use_fast_layers
from pat_mmdet.models.distillers.loss_share import LossShareCheck
from pat_mmdet.models.distillers.teacher import FrozenTeacher
from pat_mmdet.models.methods.base import BaseMethod
from pat_mmdet.models.task_modules import Activations
from pat_mmdet.registry import build_method
from pat_mmdet.structures import FeatureSpec, NetworkOutputs, Requires
from pat_mmdet.utils.argument_types import PositiveInt
from pat_mmdet.utils.checkpoint import load_weights
from pat_mmdet.utils.config import task_settings, teacher_model
from pat_mmdet.utils.finite import describe_non_finite, find_non_finite

_METHOD = "distill."
_STUDENT = "student."


class BaseDistiller(BaseModel):
    """Train a student with a frozen teacher and a method.

    Checkpoints hold the student's weights under the student's own names, so that they load into
    the plain student, and the method's under ``distill.``. The teacher is not in them.

    Args:
        student (dict): Config of the student.
        teacher (dict | str): Config of the teacher, or the path of a config file with it as
            ``model`` or a name of a model zoo, see :func:`pat_mmdet.utils.teacher_model`.
        method (dict): Config of the method: ``type`` and its arguments. Arguments that hold for
            one task only may stand in a dict under the task's name.
        teacher_checkpoint (str, optional): Path or URL of the teacher's weights. ``None``, which
            must be written out, leaves the teacher to its own ``init_cfg``; with one, no other
            weights are fetched.
        input_size (Sequence[int], optional): (height, width) of the image on which shapes are
            found. Older configs give it among the arguments of the method.
        fast_teacher (bool): Whether layers of the teacher and the method are replaced by
            numerically equivalent faster ones, see
            :func:`pat_mmdet.models.acceleration.use_fast_layers`.
        teacher_dtype (str, optional): ``'bfloat16'`` or ``'float16'`` for the passes of the teacher
            alone; losses and prompts stay in full precision.
        recompute_teacher (bool): Whether the backward pass through the prompted teacher runs its
            blocks once more instead of saving their activations: less memory, more time.
        compile (bool): Whether the blocks of both networks are compiled.
        data_preprocessor (dict, optional): Config for the networks that have none of their own.
            mmengine gives that of the top level of a config.

    Attributes:
        student (nn.Module): The student.
        distill (BaseMethod): The method.
        frozen_teacher (FrozenTeacher): The teacher, which is no submodule.

    Raises:
        FileNotFoundError: If the teacher's config or checkpoint does not exist.
        ValueError: If the checkpoint does not fit the teacher, or the networks do not fit the
            method.
    """

    task: str
    student: nn.Module
    distill: BaseMethod
    frozen_teacher: FrozenTeacher
    # Set by DistillWeightHook; without it the method's losses have the weight 1.
    distill_weight: float | None = None

    def __init__(
        self,
        student: dict,
        teacher: dict | str,
        method: dict,
        teacher_checkpoint: str | None,
        input_size: tuple[PositiveInt, PositiveInt] | None = None,
        fast_teacher: bool = True,
        teacher_dtype: Literal["bfloat16", "float16"] | None = None,
        recompute_teacher: bool = False,
        compile: bool = False,
        data_preprocessor: dict | None = None,
    ) -> None:
        teacher_cfg = teacher_model(teacher, teacher_checkpoint)
        if data_preprocessor is not None:
            student, teacher_cfg = (
                {"data_preprocessor": deepcopy(data_preprocessor), **cfg}
                for cfg in (student, teacher_cfg)
            )
        method = task_settings(method, self.task)
        image = torch.zeros(1, 3, *_one_input_size(input_size, method.pop("input_size", None)))
        dtype = _half_precision(teacher_dtype)
        network = MODELS.build(student)
        super().__init__(data_preprocessor=network.data_preprocessor)
        self.student = network
        # With the random state restored, a student begins with the same weights as when it is
        # trained alone with the same seed.
        with torch.random.fork_rng(devices=[]):
            teacher_network = _build_teacher(teacher_cfg, teacher_checkpoint)
            self.distill = build_method(method)
            self._loss_share = LossShareCheck(self.distill)
            self.frozen_teacher = self._build_frozen_teacher(teacher_network, dtype)
            self._build_layers(image)
            # Layers are replaced by class, before the cache replaces their forward methods.
            if fast_teacher:
                use_fast_layers(teacher_network, self.distill)
            if Requires.PROMPTS in self.distill.requires:
                self.frozen_teacher.cache_prefix(self.distill.first_prompted_stage, image)
            # After all hooks are registered: compiled code does not see later ones.
            if recompute_teacher:
                recompute_blocks(teacher_network)
            if compile:
                compile_blocks(self.student, teacher_network)

    @property
    def teacher(self) -> nn.Module:
        """nn.Module: The network of the teacher."""
        return self.frozen_teacher.network

    def init_weights(self) -> None:
        """Initialise the student, and copy the teacher's heads into it if the method asks for it.

        Everything outside of the backbone is copied that has the same name and shape in both
        networks. A checkpoint in ``load_from`` is loaded later and has priority.
        """
        initialised = self.is_init
        super().init_weights()
        if not self.distill.inherit_heads or initialised:
            return
        teacher = self.teacher.state_dict()
        copied = [
            name
            for name, value in self.student.state_dict().items()
            if not name.startswith("backbone.")
            and value.shape == getattr(teacher.get(name), "shape", None)
        ]
        self.student.load_state_dict({name: teacher[name] for name in copied}, strict=False)
        modules = ", ".join(dict.fromkeys(name.partition(".")[0] for name in copied))
        print_log(
            f"inherit_heads: the student begins with {len(copied)} tensors of the teacher"
            + (f" ({modules})" if copied else ", as no names and shapes are the same"),
            logger="current",
        )

    @abstractmethod
    def _build_frozen_teacher(self, network: nn.Module, dtype: torch.dtype | None) -> FrozenTeacher:
        """Register the hooks that the method requires, on the student too.

        Args:
            network (nn.Module): The teacher, with its weights.
            dtype (torch.dtype, optional): Half precision of the teacher's passes.
        """

    @abstractmethod
    def _find_shapes(self, image: Tensor) -> tuple[FeatureSpec, FeatureSpec]:
        """Run both networks on an image (1, 3, H, W), and return the student's shapes and its."""

    @abstractmethod
    def _student_outputs(self, activations: Activations, data_samples: list) -> NetworkOutputs:
        """Return the student's outputs, after the plain pass of the teacher.

        Args:
            activations (dict[str, list]): What was recorded in the student's pass.
            data_samples (list): Annotations of the images.
        """

    def _build_layers(self, image: Tensor) -> None:
        """Build the method's layers from the shapes for an image (1, 3, H, W)."""
        with eval_mode(self.student, self.teacher):
            student, teacher = self._find_shapes(image)
        self.distill.check_networks(student, teacher)
        self.distill.build_layers(student, teacher)

    def forward_student(
        self, inputs: Tensor, data_samples: list
    ) -> tuple[dict[str, Tensor], Activations]:
        """Run the student in loss mode; return its losses and the recorded activations."""
        with self._recorder.recording() as activations:
            losses = self.student(inputs, data_samples, mode="loss")
        if "loss" in losses:  # a classifier's; in logs the sum of all losses has that name
            losses["loss_cls"] = losses.pop("loss")
        return losses, activations

    def collect_outputs(
        self, inputs: Tensor, data_samples: list, activations: Activations
    ) -> tuple[NetworkOutputs, NetworkOutputs]:
        """Run the plain teacher and collect the method's inputs.

        Args:
            inputs (Tensor): Normalised images (B, 3, H, W), as the student had them.
            data_samples (list): Their annotations.
            activations (dict[str, list]): What was recorded in the student's pass.

        Returns:
            tuple[NetworkOutputs, NetworkOutputs]: Of the student, with gradient, and of the
            teacher.
        """
        teacher = self.frozen_teacher.forward(inputs, data_samples, activations)
        return self._student_outputs(activations, data_samples), teacher

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Compute the student's own losses and those of the method.

        Args:
            inputs (Tensor): Normalised images (B, 3, H, W), mixed if the student's preprocessor
                mixes them.
            data_samples (list): Their annotations.

        Returns:
            dict[str, Tensor]: All losses by name.

        Raises:
            ValueError: If the method returns a loss by a name that is not trained, or taken.
        """
        losses, activations = self.forward_student(inputs, data_samples)
        if self.distill_weight == 0:
            return {**losses, **self._idle_losses()}
        student, teacher = self.collect_outputs(inputs, data_samples, activations)
        distill_losses = self.distill(student, teacher, self.frozen_teacher)
        self.frozen_teacher.release()
        self._check_names(distill_losses, losses)
        if self._loss_share.steps_left:
            total, _ = self.parse_losses({**losses, **distill_losses})
            self._loss_share.update(total, distill_losses)
        return {**losses, **self._apply_distill_weight(distill_losses)}

    def _check_names(self, distill_losses: dict[str, Tensor], losses: dict[str, Tensor]) -> None:
        """Check that the method's losses are trained and hide none of the student's."""
        method = type(self.distill).__name__
        for name in distill_losses:
            if "loss" not in name:
                raise ValueError(
                    f"{method} returns {name!r}, which mmengine would log but not train, as only "
                    f"names with 'loss' in them are summed; rename it to 'loss_{name}'"
                )
            if name in losses:
                raise ValueError(
                    f"{method} returns {name!r}, which is the name of a loss of "
                    f"{type(self.student).__name__}; rename it"
                )

    def _apply_distill_weight(self, losses: dict[str, Tensor]) -> dict[str, Tensor]:
        """Multiply the method's losses by the weight of the step, and add it for the log."""
        if self.distill_weight is None:
            return losses
        return {
            **{name: self.distill_weight * value for name, value in losses.items()},
            "distill_weight": self._logged_weight(),
        }

    def _idle_losses(self) -> dict[str, Tensor]:
        """Return a loss of 0 for a step without the method."""
        weight = self._logged_weight()
        # Distributed training waits for a gradient of every parameter.
        total = sum((param.sum() for param in self.distill.parameters()), weight)
        return {"loss_distill": 0 * total, "distill_weight": weight}

    def _logged_weight(self) -> Tensor:
        return next(self.student.parameters()).new_tensor(self.distill_weight)

    def forward(
        self, inputs: Tensor, data_samples: list | None = None, mode: str = "tensor"
    ) -> Any:
        """Train with the method in mode ``'loss'``; otherwise run the student alone."""
        if mode == "loss":
            return self.loss(inputs, data_samples)
        return self.student(inputs, data_samples, mode=mode)

    def train(self, mode: bool = True) -> BaseDistiller:
        """Set the mode of student and method; the teacher stays in eval mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> BaseDistiller:
        """Move and cast the teacher with the rest (``.to()``, ``.cuda()``, ``.half()``)."""
        super()._apply(fn, *args, **kwargs)
        self.frozen_teacher._apply(fn, *args, **kwargs)
        return self

    def state_dict(
        self,
        *args: Any,
        destination: dict | None = None,
        prefix: str = "",
        keep_vars: bool = False,
    ) -> dict:
        """Return the student's entries under their own names and the method's under ``distill.``.

        The student is asked as a module on its own, so that hooks which rename its keys (those
        of wrappers of other libraries) do as they would without a distiller.
        """
        if destination is None:
            destination = OrderedDict()
            destination._metadata = OrderedDict()  # type: ignore[attr-defined]
        parts = (
            (prefix, self.student.state_dict(keep_vars=keep_vars)),
            (prefix + _METHOD, self.distill.state_dict(keep_vars=keep_vars)),
        )
        for start, state in parts:
            destination.update({start + key: value for key, value in state.items()})
            for key, value in getattr(state, "_metadata", {}).items():
                metadata = destination._metadata  # type: ignore[attr-defined]
                metadata[(start + key).rstrip(".")] = value
        return destination

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Give the student's keys the prefix that they have inside this module."""
        for key in [key for key in state_dict if key.startswith(prefix)]:
            name = key[len(prefix) :]
            if not name.startswith((_METHOD, _STUDENT)):
                state_dict[prefix + _STUDENT + name] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _build_teacher(cfg: dict, checkpoint: str | None) -> nn.Module:
    """Build the teacher with the weights of its checkpoint, else those of its ``init_cfg``.

    Raises:
        ValueError: If weights are NaN or infinite.
    """
    network = MODELS.build(cfg)
    if checkpoint is not None:
        load_weights(network, checkpoint)
        return network
    network.init_weights()
    names = find_non_finite(network.state_dict())
    if names:
        raise ValueError(
            f"the teacher's init_cfg gives {describe_non_finite(names)}; use another checkpoint"
        )
    return network


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
            "differ; give the size that is meant as model.input_size, and leave out the other, its "
            "earlier name"
        )
    return of_method if size is None else size


def _half_precision(name: str | None) -> torch.dtype | None:
    """Return a half precision by its name.

    Raises:
        ValueError: If the name is unknown.
    """
    known = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name not in known:
        raise ValueError(f"model.teacher_dtype={name!r}; known: None, 'bfloat16', 'float16'")
    return known[name]


@contextmanager
def eval_mode(*networks: nn.Module) -> Iterator[None]:
    """Run networks in eval mode without gradient, and restore their modes."""
    modes = [(module, module.training) for net in networks for module in net.modules()]
    for network in networks:
        network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training
