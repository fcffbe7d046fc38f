"""Prompts at the inputs of a network's stages, by forward pre-hooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from torch import nn

from pat_mmdet.structures import Prompt

from .stages import Stage, resolve


class Prompter:
    """Let a function change the input of each stage of a network.

    Args:
        network (nn.Module): The network; forward pre-hooks are registered on its modules.
        stages (Sequence[Stage]): Its stages from shallow to deep.

    Raises:
        ValueError: If the path of a stage does not exist.
    """

    def __init__(self, network: nn.Module, stages: Sequence[Stage]) -> None:
        self._prompt: Prompt | None = None
        for index, stage in enumerate(stages):
            hook = partial(self._apply_prompt, index, stage)
            resolve(network, stage.input_module).register_forward_pre_hook(hook)

    def _apply_prompt(
        self, index: int, stage: Stage, module: nn.Module, args: tuple
    ) -> tuple | None:
        if self._prompt is None:
            return None
        features, restore_layout = stage.to_map(args[0], args)
        return (restore_layout(self._prompt(index, features)), *args[1:])

    @contextmanager
    def prompting(self, prompt: Prompt) -> Iterator[None]:
        """Replace the input ``x`` of stage i by ``prompt(i, x)`` within the context.

        Args:
            prompt (Prompt): Takes the index of the stage and its input as a map (B, C, H, W), and
                returns a map of the same shape.
        """
        self._prompt = prompt
        try:
            yield
        finally:
            self._prompt = None
