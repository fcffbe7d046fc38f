"""Prompts at the entry of a network's stages, by forward pre-hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn

from .stages import Stage, resolve

Prompt = Callable[[int, Tensor], Tensor]


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
