"""CRD: contrastive representation distillation (Tian et al., ICLR 2020)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from mmengine.dist import all_gather, all_reduce
from torch import Tensor, nn

from pat_mmdet.models.losses import crd_loss
from pat_mmdet.models.methods.base import BaseMethod
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs, PromptableTeacher, Requires
from pat_mmdet.utils.argument_types import (
    Fraction,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)

_BANKS = ("bank_student", "bank_teacher")
_CONSTANTS = ("z_student", "z_teacher")


class _Memory:
    """Hold tensors outside of the module tree.

    They grow with the data set. As they are no buffers, they are not broadcast before each step,
    and EMA does not average them. A deep copy (EMA makes one of the whole model) shares them; the
    original alone saves and loads them.

    Attributes:
        tensors (dict[str, Tensor]): The tensors by name.
        original (bool): Whether this is no copy.
    """

    def __init__(self, tensors: dict[str, Tensor], original: bool = True) -> None:
        self.tensors = tensors
        self.original = original

    def __deepcopy__(self, memo: dict) -> _Memory:
        return _Memory(self.tensors, original=False)


@METHODS.register_module()
class CRD(BaseMethod):
    """Contrast each image with random images in a memory of the other network's embeddings.

    Source: Tian et al., Contrastive Representation Distillation, ICLR 2020, section 3, with the
    noise contrastive estimate of its published code, see :func:`crd_loss`. A
    linear layer on each side and L2 normalisation bring the embeddings (B, D) of student and
    teacher to unit rows (B, width); both layers are trained. Each network has a bank
    (num_data, width) with a row for each image of the data set. The student's row is scored by
    inner products against the image's row and ``num_negatives`` other rows of the teacher's bank,
    and the teacher's row against the same rows of the student's bank. Negatives are uniform over
    the whole data set, whatever their labels, drawn with replacement for each image; the image's
    own row may be among them. The constants Z come from the first batch.

    After the loss, in training mode, the rows of the batch's images become
    ``momentum · old + (1 − momentum) · new`` and are normalised again. Of equal indices the last
    counts. With several processes, each of which must have the same batch size, all banks get the
    rows of all processes and stay equal.

    Banks (float32, unit rows at random at first, the same in every process) and constants are in
    checkpoints as ``bank_student``, ``bank_teacher``, ``z_student`` and ``z_teacher``; for
    ImageNet the banks are 1.3 GB. A step takes ``2 · B · (num_negatives + 1) · width`` floats for
    the rows it reads: 2.1 GB at B = 128 with the defaults.

    Args:
        num_data (int): Number of images of the training set, which has to be set; indices are
            smaller.
        width (int): Width in which the embeddings are compared.
        num_negatives (int): Negatives for each image, k of the paper.
        momentum (float): Share of the old row when a bank is updated.
        temperature (float): Temperature of the scores.
        crd_weight (float): Weight of the loss, the sum of both directions.
    """

    requires = Requires.EMBEDDING | Requires.INDICES

    def __init__(
        self,
        num_data: NonNegativeInt = 0,
        width: PositiveInt = 128,
        num_negatives: PositiveInt = 16384,
        momentum: Fraction = 0.5,
        temperature: PositiveFloat = 0.07,
        crd_weight: NonNegativeFloat = 1.0,
    ) -> None:
        super().__init__()
        self.num_data = num_data
        self.width = width
        self.num_negatives = num_negatives
        self.momentum = momentum
        self.temperature = temperature
        self.crd_weight = crd_weight

    def build_layers(self, student: FeatureSpec, teacher: FeatureSpec) -> None:
        """Build the banks, and the layers to the common width; arguments as in :class:`BaseMethod`.

        Raises:
            ValueError: If ``num_data`` is not set.
        """
        if self.num_data < 1:
            raise ValueError(
                f"num_data={self.num_data}: CRD keeps a row for each training image; set "
                "model.method.num_data to their number"
            )
        self.student_layer = nn.Linear(student.embedding, self.width)
        self.teacher_layer = nn.Linear(teacher.embedding, self.width)
        # A generator of its own: every process begins with the same banks.
        generator = torch.Generator().manual_seed(0)
        tensors = {
            name: torch.randn(self.num_data, self.width, generator=generator) for name in _BANKS
        }
        for bank in tensors.values():
            F.normalize(bank, dim=1, out=bank)
        # Negative: not known yet.
        tensors.update((name, torch.tensor(-1.0)) for name in _CONSTANTS)
        self._memory = _Memory(tensors)
        self._started = False

    def forward(
        self, student: NetworkOutputs, teacher: NetworkOutputs, frozen_teacher: PromptableTeacher
    ) -> dict[str, Tensor]:
        """Return ``loss_crd``; arguments as in :class:`BaseMethod`.

        Raises:
            ValueError: If there is not one index for each row of the embedding, or, in the first
                step, an index is out of range.
        """
        self._check(student.indices, student.embedding)
        rows = torch.cat([student.indices[:, None], self.draw_negatives(student.indices)], 1)
        student_rows = F.normalize(self.student_layer(student.embedding).float(), dim=1)
        teacher_rows = F.normalize(self.teacher_layer(teacher.embedding).float(), dim=1)
        bank_student, bank_teacher = (self._memory.tensors[name] for name in _BANKS)
        scores = (
            _scores(student_rows, bank_teacher, rows),
            _scores(teacher_rows, bank_student, rows),
        )
        if not self._started:
            self._set_constants(scores)
            self._started = True
        z_student, z_teacher = (self._memory.tensors[name] for name in _CONSTANTS)
        loss = crd_loss(*scores, z_student, z_teacher, self.temperature, self.num_data)
        if self.training:
            self._update(student.indices, student_rows, teacher_rows)
        return {"loss_crd": self.crd_weight * loss}

    def draw_negatives(self, indices: Tensor) -> Tensor:
        """Draw rows of the banks, with torch's generator of the device.

        Args:
            indices (Tensor): The images' own rows, (B,).

        Returns:
            Tensor: Uniform row numbers, int64 (B, num_negatives).
        """
        shape = (len(indices), self.num_negatives)
        return torch.randint(self.num_data, shape, device=indices.device)

    def _check(self, indices: Tensor | None, embedding: Tensor) -> None:
        if indices is None or len(indices) != len(embedding):
            raise ValueError(
                "CRD needs the index in the data set of the image of each row: got "
                f"{'none' if indices is None else len(indices)} for {len(embedding)} rows. It is "
                "for classification, where a row of the embedding is an image"
            )
        # Once, since the processor waits for the device here.
        if not self._started and not 0 <= indices.min() <= indices.max() < self.num_data:
            raise ValueError(
                f"the batch has images {indices.min()} to {indices.max()}, but num_data is "
                f"{self.num_data}; set model.method.num_data to the number of training images"
            )

    @torch.no_grad()
    def _set_constants(self, scores: tuple[Tensor, Tensor]) -> None:
        """Set Z by the scores of all processes, unless it was loaded."""
        means = torch.stack([(score / self.temperature).exp().mean() for score in scores])
        all_reduce(means, op="mean")
        for name, mean in zip(_CONSTANTS, means):
            z = self._memory.tensors[name]
            z.copy_(torch.where(z < 0, mean * self.num_data, z))

    @torch.no_grad()
    def _update(self, indices: Tensor, student_rows: Tensor, teacher_rows: Tensor) -> None:
        """Update the banks by the rows (B, width) of the images of all processes."""
        indices = torch.cat(all_gather(indices))
        new = torch.cat(all_gather(torch.stack([student_rows, teacher_rows])), 1)
        # Equal indices, as samplers give to fill up an epoch, all write what the last has: which
        # write wins is left open on CUDA, and could differ from process to process.
        order = torch.arange(len(indices), device=indices.device)
        last = ((indices[:, None] == indices) * order).amax(1)
        for name, rows in zip(_BANKS, new[:, last]):
            bank = self._memory.tensors[name]
            old = bank[indices]
            moved = F.normalize(self.momentum * old + (1 - self.momentum) * rows, dim=1)
            # A step that overflows in half precision is skipped; a NaN would stay in the bank.
            bank[indices] = torch.where(moved.isfinite().all(1, keepdim=True), moved, old)

    def _apply(self, fn: Callable, *args: Any, **kwargs: Any) -> CRD:
        """Move the memory to the device of the parameters; it stays in float32."""
        super()._apply(fn, *args, **kwargs)
        tensors = self._memory.tensors
        for name, tensor in tensors.items():
            tensors[name] = tensor.to(fn(tensor.new_empty(0)).device)
        return self

    @contextmanager
    def _memory_as_buffers(self) -> Iterator[None]:
        """Register the memory of the original as buffers, for torch to save and load."""
        tensors = self._memory.tensors if self._memory.original else {}
        self._buffers.update(tensors)
        try:
            yield
        finally:
            for name in tensors:
                tensors[name] = self._buffers.pop(name)

    def _save_to_state_dict(self, *args: Any) -> None:
        with self._memory_as_buffers():
            super()._save_to_state_dict(*args)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        if not self._memory.original:
            for name in self._memory.tensors:
                state_dict.pop(prefix + name, None)
        with self._memory_as_buffers():
            super()._load_from_state_dict(state_dict, prefix, *args)
        # The constants may have come back to "not known yet".
        self._started = False


def _scores(x: Tensor, bank: Tensor, rows: Tensor) -> Tensor:
    """Return inner products (B, k + 1) of (B, D) with rows of a bank (n, D), in float32."""
    with torch.autocast(device_type=x.device.type, enabled=False):
        return (F.embedding(rows, bank) @ x[:, :, None]).squeeze(2)
