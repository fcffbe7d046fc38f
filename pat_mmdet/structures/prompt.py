"""Prompts, and what a method may ask of the teacher."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from pat_mmdet.structures.network_outputs import NetworkOutputs


class Prompt(Protocol):
    """A function that changes what enters a stage of the teacher."""

    def __call__(self, stage: int, x: Tensor, /) -> Tensor:
        """Return the prompted input of a stage.

        Args:
            stage (int): Index of the stage, from shallow to deep.
            x (Tensor): Its input as a map (B, C, H, W).

        Returns:
            Tensor: A map of the same shape.
        """


class PromptableTeacher(Protocol):
    """A teacher that has seen the batch of the step."""

    def forward_prompted(self, prompt: Prompt, num_images: int | None = None) -> NetworkOutputs:
        """Run the teacher with prompts on the batch of the step, with gradient to the prompts.

        Args:
            prompt (Prompt): Changes the input of each stage.
            num_images (int, optional): Number of images, the first of the batch; all by default.

        Returns:
            NetworkOutputs: Outputs for these images; logits are those at the first rows of the
            plain ones.
        """
