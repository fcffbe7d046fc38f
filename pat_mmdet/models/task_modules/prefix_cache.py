"""Cache of what a network computes before a stage."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


class PrefixCache:
    """Cache the outputs of modules that finish before a stage, and replay them in a second pass.

    The ``forward`` of these modules is wrapped. Operations between them run again, on equal
    inputs.

    Args:
        network (nn.Module): The network, changed in place.
        input_module (str): Path of the module whose input is that of the stage.
        run (Callable): Runs the network once, to observe the order of its modules.
        observed (Collection[str]): Paths of modules with hooks that must fire in the second pass
            too; a module that contains one is not replayed.
    """

    def __init__(
        self,
        network: nn.Module,
        input_module: str,
        run: Callable[[], Any],
        observed: Collection[str] = (),
    ) -> None:
        self._cache: dict[str, Any] = {}
        self._capturing = False
        self._replayed: dict[str, Any] = {}
        for name in _modules_before_stage(network, input_module, run, observed):
            module = network.get_submodule(name)
            module.forward = partial(self._forward, name, module.forward)

    def _forward(self, name: str, forward: Callable, *args: Any, **kwargs: Any) -> Any:
        if name in self._replayed:
            return self._replayed[name]
        output = forward(*args, **kwargs)
        if self._capturing:
            self._cache[name] = output
        return output

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Cache the outputs of the pass inside the context, in place of earlier ones."""
        self.clear()
        self._capturing = True
        try:
            yield
        finally:
            self._capturing = False

    @contextmanager
    def replay(self, num_images: int | None = None) -> Iterator[None]:
        """Return cached outputs in the pass inside the context; with an empty cache all is run.

        Args:
            num_images (int, optional): Number of images of this pass, the first of the cached
                batch; all by default.
        """
        self._replayed = {
            name: _first_images(output, num_images) for name, output in self._cache.items()
        }
        try:
            yield
        finally:
            self._replayed = {}

    def clear(self) -> None:
        """Drop the cached outputs."""
        self._cache = {}


def _first_images(output: Any, num_images: int | None) -> Any:
    """Return the part for the first images of all tensors in a module's output."""
    if isinstance(output, Tensor):
        return output[:num_images]
    if isinstance(output, (tuple, list)):
        return type(output)(_first_images(item, num_images) for item in output)
    return output


@torch.no_grad()
def _modules_before_stage(
    network: nn.Module, input_module: str, run: Callable[[], Any], observed: Collection[str]
) -> list[str]:
    """Return the paths of the outermost modules that run once, and finish before another begins."""
    calls: dict[str, int] = {}
    finished: list[str] = []
    before: list[str] = []

    def enter(name: str, module: nn.Module, args: tuple) -> None:
        calls[name] = calls.get(name, 0) + 1
        if name == input_module and calls[name] == 1:
            before.extend(finished)

    def leave(name: str, module: nn.Module, args: tuple, output: Any) -> None:
        finished.append(name)

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
        if calls[name] == 1 and not any(path.startswith(f"{name}.") for path in observed)
    }
    return [name for name in usable if not any(name.startswith(f"{other}.") for other in usable)]
