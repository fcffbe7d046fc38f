"""Inputs and outputs of chosen modules, recorded by forward hooks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import nn

from .stages import resolve


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
