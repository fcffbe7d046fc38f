"""Cache of what a network computes before a stage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class PrefixCache:
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
        for name in _modules_before_stage(network, begin, run, read):
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
    def capture(self) -> Iterator[dict[str, Any]]:
        """Gives a dict that fills while the network runs inside the context."""
        self._kept = kept = {}
        try:
            yield kept
        finally:
            self._kept = None

    @contextmanager
    def replay(self, kept: Mapping[str, Any], images: int | None = None) -> Iterator[None]:
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
def _modules_before_stage(
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
