"""Hooks of the training loop."""

from pat_mmdet.hooks.checkpoint_hook import SafeCheckpointHook

__all__ = ["SafeCheckpointHook"]
