"""Reading features and adding prompts inside a network with hooks, without editing it.

Hooks are registered once, when the network is built. They do nothing outside of the context
managers here, so that no graph outlives its step.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

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
