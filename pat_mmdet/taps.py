"""Reading features and adding prompts inside a network with hooks, without editing it.

Hooks are registered once, when the network is built. They do nothing outside of the context
managers here, so that no graph outlives its step.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from pat_mmdet.stages import Stage

Prompt = Callable[[int, Tensor], Tensor]


def resolve(network: nn.Module, path: str) -> nn.Module:
    """Finds a module by its path.

    Raises:
        ValueError: If there is no such module; the paths that come close are named.
    """
    modules = dict(network.named_modules())
    if path in modules:
        return modules[path]
    depth = path.count(".")
    candidates = [name for name in modules if name.count(".") <= depth and name]
    close = difflib.get_close_matches(path, candidates, n=5, cutoff=0.4)
    raise ValueError(
        f"{type(network).__name__} has no module {path!r}. "
        f"Paths that come close: {', '.join(close) or ', '.join(candidates[:10])}"
    )


class Recorder:
    """Keeps what chosen modules take or give during one pass.

    Args:
        network (nn.Module): The network to read from.
        inputs (Mapping[str, tuple[str, int]]): Name to (module path, argument position): the
            positional arguments of the module's calls are kept under the name, in a list.
        outputs (Mapping[str, str]): Name to module path: what its calls return is kept.

    Raises:
        ValueError: If a path does not exist.
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Mapping[str, tuple[str, int]] | None = None,
        outputs: Mapping[str, str] | None = None,
    ) -> None:
        self._records: dict[str, list] | None = None
        for name, (path, position) in (inputs or {}).items():
            hook = partial(self._keep_input, name, position)
            resolve(network, path).register_forward_pre_hook(hook)
        for name, path in (outputs or {}).items():
            resolve(network, path).register_forward_hook(partial(self._keep_output, name))

    def _keep_input(self, name: str, position: int, module: nn.Module, args: tuple) -> None:
        if self._records is not None:
            self._records.setdefault(name, []).append(args[position])

    def _keep_output(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        if self._records is not None:
            self._records.setdefault(name, []).append(output)

    @contextmanager
    def recording(self) -> Iterator[dict[str, list]]:
        """Gives a dict that fills while the network runs inside the context.

        Its values are lists with an item for each call of the module.
        """
        self._records = records = {}
        try:
            yield records
        finally:
            self._records = None


class Prompter:
    """Lets a function change the input of each stage of a network.

    Args:
        network (nn.Module): The network to prompt.
        stages (Sequence[Stage]): Its stages from shallow to deep.

    Raises:
        ValueError: If the path of a stage does not exist.
    """

    def __init__(self, network: nn.Module, stages: Sequence[Stage]) -> None:
        self._prompt: Prompt | None = None
        for index, stage in enumerate(stages):
            hook = partial(self._apply_prompt, index, stage)
            resolve(network, stage.begin).register_forward_pre_hook(hook)

    def _apply_prompt(
        self, index: int, stage: Stage, module: nn.Module, args: tuple
    ) -> tuple | None:
        if self._prompt is None:
            return None
        features, back = stage.to_map(args[0], args)
        return (back(self._prompt(index, features)), *args[1:])

    @contextmanager
    def prompting(self, prompt: Prompt) -> Iterator[None]:
        """Within the context, stage i gets ``prompt(i, x)`` in place of its input ``x``.

        Args:
            prompt (Callable): Takes the index of the stage and its input as a map
                (B, C, H, W), and returns a map of the same shape.
        """
        self._prompt = prompt
        try:
            yield
        finally:
            self._prompt = None


class SharedPrefix:
    """What a network computes before a stage, kept from one pass for a later one.

    Modules that are done before the stage begins give in the later pass what they gave in the
    first. What stands between them is computed again, from equal numbers.

    Args:
        network (nn.Module): The network; the ``forward`` of such modules is wrapped.
        begin (str): Path of the module whose input is the stage's.
        run (Callable): Runs the network once, so that the order of its modules is seen.
        read (Collection[str]): Paths of modules whose outputs are read by hooks: what contains one
            is run, so that the hook fires.
    """

    def __init__(
        self,
        network: nn.Module,
        begin: str,
        run: Callable[[], Any],
        read: Collection[str] = (),
    ) -> None:
        self._kept: dict[str, Any] | None = None
        self._replayed: dict[str, Any] = {}
        for name in _done_before(network, begin, run, read):
            module = network.get_submodule(name)
            module.forward = partial(self._forward, name, module.forward)

    def _forward(self, name: str, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        if name in self._replayed:
            return self._replayed[name]
        output = forward(*args, **kwargs)
        if self._kept is not None:
            self._kept[name] = output
        return output

    @contextmanager
    def keeping(self) -> Iterator[dict[str, Any]]:
        """Gives a dict that fills while the network runs inside the context."""
        self._kept = kept = {}
        try:
            yield kept
        finally:
            self._kept = None

    @contextmanager
    def replaying(self, kept: Mapping[str, Any], images: int | None = None) -> Iterator[None]:
        """Within the context the network takes what was kept, for the first images of the batch.

        Args:
            kept (Mapping): What :meth:`keeping` gave.
            images (int, optional): Number of images of the later pass; all by default.
        """
        self._replayed = {name: _first(value, images) for name, value in kept.items()}
        try:
            yield
        finally:
            self._replayed = {}


def _first(value: Any, count: int | None) -> Any:
    """Takes the first samples of all tensors in the output of a module."""
    if isinstance(value, Tensor):
        return value[:count]
    if isinstance(value, (tuple, list)):
        return type(value)(_first(item, count) for item in value)
    return value


@torch.no_grad()
def _done_before(
    network: nn.Module, begin: str, run: Callable[[], Any], read: Collection[str]
) -> list[str]:
    """Finds the largest modules that run once, and have run before another begins."""
    calls: dict[str, int] = {}
    done: list[str] = []
    before: list[str] | None = None

    def enter(name: str, module: nn.Module, args: tuple) -> None:
        nonlocal before
        calls[name] = calls.get(name, 0) + 1
        if name == begin and before is None:
            before = list(done)

    def leave(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        done.append(name)

    handles = []
    for name, module in network.named_modules():
        handles += [
            module.register_forward_pre_hook(partial(enter, name)),
            module.register_forward_hook(partial(leave, name)),
        ]
    run()
    for handle in handles:
        handle.remove()
    usable = {
        name
        for name in before
        if calls[name] == 1 and not any(path.startswith(f"{name}.") for path in read)
    }
    return [name for name in usable if not any(name.startswith(f"{other}.") for other in usable)]
