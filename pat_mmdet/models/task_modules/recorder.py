"""Recording the inputs and outputs of modules by forward hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from .stages import resolve

# By name, a list with an item for each call of the module.
Activations = dict[str, list]


class Recorder:
    """Record what chosen modules take or return while a network runs.

    Args:
        network (nn.Module): The network; forward hooks are registered on its modules.
        inputs (Mapping[str, tuple[str, int]], optional): For each name a module path and the
            position of the argument to record.
        outputs (Mapping[str, str], optional): For each name the path of a module whose output is
            recorded.

    Raises:
        ValueError: If a path does not exist.

    Example:
        >>> recorder = Recorder(network, outputs={"features": "neck"})
        >>> with recorder.recording() as activations:
        ...     network(images)
        >>> features = activations["features"][0]  # of the first call
    """

    def __init__(
        self,
        network: nn.Module,
        inputs: Mapping[str, tuple[str, int]] | None = None,
        outputs: Mapping[str, str] | None = None,
    ) -> None:
        self._activations: Activations | None = None
        for name, (path, position) in (inputs or {}).items():
            hook = partial(self._record_input, name, position)
            resolve(network, path).register_forward_pre_hook(hook)
        for name, path in (outputs or {}).items():
            resolve(network, path).register_forward_hook(partial(self._record_output, name))

    def _record_input(self, name: str, position: int, module: nn.Module, args: tuple) -> None:
        if self._activations is not None:
            self._activations.setdefault(name, []).append(args[position])

    def _record_output(self, name: str, module: nn.Module, args: tuple, output: Any) -> None:
        if self._activations is not None:
            self._activations.setdefault(name, []).append(output)

    @contextmanager
    def recording(self) -> Iterator[Activations]:
        """Yield a dict that is filled while the network runs inside the context.

        Yields:
            dict[str, list]: Activations by name, in the order of the calls.
        """
        activations: Activations = {}
        self._activations = activations
        try:
            yield activations
        finally:
            self._activations = None
