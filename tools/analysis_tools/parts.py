"""The passes that a training step is made of, each to be run alone, and what a run takes."""

from __future__ import annotations

import argparse
import gc
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import accumulate
from typing import Any

import torch
from mmdet.testing import demo_mm_inputs
from mmengine.registry import MODELS, init_default_scope
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from pat_mmdet.structures import Prompt
from pat_mmdet.utils import is_distiller, load_config, teacher_model

# Objects of a COCO image, on average.
_OBJECTS = 7


def default_device() -> str:
    """Return ``'cuda'`` where torch finds a GPU, else ``'cpu'``."""
    return "cuda" if torch.cuda.is_available() else "cpu"


class Parts:
    """A student, its teacher and a method on one random batch.

    Args:
        args (argparse.Namespace): What :func:`step_arguments.add_arguments` reads.
        method (str): Name of a method overlay.
        dtype (torch.dtype, optional): Precision of autocast; full precision without.
        compile (bool): Whether to compile the blocks of both networks.
        fast_teacher (bool): Whether the teacher's layers are computed in faster forms.

    Raises:
        FileNotFoundError: If there is no such config.
        ValueError: If it has no teacher, or the size is not one or two numbers.
    """

    def __init__(
        self,
        args: argparse.Namespace,
        method: str,
        dtype: torch.dtype | None = None,
        compile: bool = False,
        fast_teacher: bool = True,
    ) -> None:
        options = {
            "model.teacher_checkpoint": None,
            "model.compile": compile,
            "model.fast_teacher": fast_teacher,
        }
        for key, value in (args.cfg_options or {}).items():
            # KD, beside which a method is measured, does not know that one's arguments.
            if method == args.method or not key.startswith("model.method."):
                options[key] = value
        cfg = load_config(args.config, options, method)
        if not is_distiller(cfg):
            raise ValueError(f"--method {method} has no teacher; take another one")
        # Older configs have the size among the method's arguments.
        size = cfg.model.method.pop("input_size", None) or cfg.model.input_size
        size = args.size or size
        if len(size) > 2:
            raise ValueError(f"--size takes one or two numbers, not {len(size)}")
        cfg.model.input_size = size = (size[0], size[-1])
        cfg.model.teacher = teacher_model(cfg.model.teacher, None)
        _forget_weights(cfg.model)
        init_default_scope(cfg.default_scope)
        torch.manual_seed(0)
        self.model = MODELS.build(cfg.model).to(args.device).train()
        self.device = torch.device(args.device)
        self._dtype = dtype
        data = _batch(self.model, args.batch_size, size)
        self.inputs, self.samples = self.model.data_preprocessor(data, True).values()
        self._activations: dict[str, list] | None = None

    def step(self) -> None:
        """One step of training, without the optimizer: forward, losses, backward."""
        with self._precision():
            losses = self.model(self.inputs, self.samples, mode="loss")
        self._backward(losses)

    def student(self) -> None:
        """Forward and backward pass of the student alone."""
        with self._precision():
            losses = self.model.student(self.inputs, self.samples, mode="loss")
        self._backward(losses)

    def teacher(self) -> None:
        """Run the plain pass of the teacher, of the parts that the method requires."""
        with self._precision():
            if self._activations is None:
                with torch.no_grad():
                    _, self._activations = self.model.forward_student(self.inputs, self.samples)
            self.model.collect_outputs(self.inputs, self.samples, self._activations)

    def prompted_forward(self, bare: bool = False) -> list[Tensor]:
        """Run the plain pass of the teacher, then its forward pass with prompts.

        Args:
            bare (bool): As in :meth:`prompted`.

        Returns:
            list[Tensor]: Features and logits, with gradient to the prompts.
        """
        self.teacher()
        return self._prompted_outputs(self._bare_prompt if bare else self._own_prompt)

    def prompted(self, bare: bool = False) -> Callable[[], None]:
        """Return the function of the prompted pass, forward and backward to the prompts.

        Args:
            bare (bool): Whether a prompt is no more than one number a channel, in place of the
                method's layers.
        """
        prompt = self._bare_prompt if bare else self._own_prompt
        gradients = [torch.randn_like(x) for x in self.prompted_forward(bare)]

        def run() -> None:
            torch.autograd.backward(self._prompted_outputs(prompt), gradients)
            self.model.zero_grad(set_to_none=True)

        return run

    def _prompted_outputs(self, prompt: Prompt) -> list[Tensor]:
        num_images = math.ceil(len(self.inputs) * self.model.distill.prompted_share)
        teacher = self.model.frozen_teacher
        # Alone, the pass has no plain one to share its beginning with.
        teacher.prefix_cache.clear()
        with self._precision():
            outputs = teacher.forward_prompted(prompt, num_images)
        tensors = [x for x in (*outputs.features, outputs.logits) if x is not None]
        # Those before the first prompt have no gradient.
        return [x for x in tensors if x.requires_grad]

    def _own_prompt(self, index: int, x: Tensor) -> Tensor:
        prompts = self.model.distill.prompts
        return prompts[str(index)](x) if str(index) in prompts else x

    def _bare_prompt(self, index: int, x: Tensor) -> Tensor:
        if str(index) not in self.model.distill.prompts:
            return x
        return x + x.new_zeros(x.shape[1], 1, 1).requires_grad_()

    def _precision(self) -> torch.autocast | nullcontext:
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self._dtype)

    def _backward(self, losses: dict[str, Tensor]) -> None:
        total, _ = self.model.parse_losses(losses)
        total.backward()
        self.model.zero_grad(set_to_none=True)


def _forget_weights(node: Any) -> None:
    """Take pretrained weights out of a config: the speed does not depend on them."""
    if isinstance(node, (list, tuple)):
        for item in node:
            _forget_weights(item)
    if not isinstance(node, dict):
        return
    if (node.get("init_cfg") or {}).get("type") == "Pretrained":
        node["init_cfg"] = None
    if "pretrained" in node:
        node["pretrained"] = False
    for item in node.values():
        _forget_weights(item)


def _batch(model: nn.Module, count: int, size: Sequence[int]) -> dict:
    """Random images with annotations, as a data loader gives them."""
    # Labels 0 and 1, which every data set has.
    if model.task == "detection":
        return demo_mm_inputs(
            count, (3, *size), [_OBJECTS] * count, num_classes=2, use_box_type=True
        )
    images = torch.randint(256, (count, 3, *size), dtype=torch.uint8)
    samples = [DataSample(metainfo=dict(sample_idx=i)).set_gt_label(i % 2) for i in range(count)]
    return dict(inputs=images, data_samples=samples)


def elapsed(run: Callable[[], None], device: torch.device, cpu_time: bool = False) -> float:
    """Time one run, with all that it started on the device.

    Args:
        run (Callable[[], None]): What to time.
        device (torch.device): Where it runs.
        cpu_time (bool): Whether to count the CPU time of all threads, not wall-clock time.

    Returns:
        float: Seconds.
    """
    clock = time.process_time if cpu_time else time.perf_counter
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = clock()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def peak_memory(run: Callable[[], None], device: torch.device) -> float:
    """How much memory a run takes at its highest beyond what was in use before, in MiB.

    By the allocator of a GPU; on a CPU by the sum of all that torch allocates and frees, which is
    the same from run to run, where the resident set also has what malloc keeps.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return (torch.cuda.max_memory_allocated(device) - before) / 2**20
    os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # else it complains that there is no GPU
    with torch.autograd.profiler.profile(profile_memory=True) as trace:
        run()
    changes = (e.nbytes() for e in trace.kineto_results.events() if e.name() == "[memory]")
    return max(accumulate(changes), default=0) / 2**20


def saved_memory(run: Callable[[], None], model: torch.nn.Module) -> float:
    """Return what autograd saves for the backward pass of a run, in MiB, without weights."""
    weights = {param.untyped_storage().data_ptr() for param in model.parameters()}
    weights |= {param.untyped_storage().data_ptr() for param in model.teacher.parameters()}
    sizes: dict[int, int] = {}

    def keep(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            sizes[storage.data_ptr()] = storage.nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        run()
    return sum(sizes.values()) / 2**20
