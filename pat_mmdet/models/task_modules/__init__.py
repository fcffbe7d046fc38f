"""Hooks and readers by which distillers observe and prompt networks."""

from .prefix_cache import PrefixCache
from .prompter import Prompter
from .recorder import Activations, Recorder
from .stages import Stage, backbone_stages, find_stages, resolve

__all__ = [
    "Activations",
    "PrefixCache",
    "Prompter",
    "Recorder",
    "Stage",
    "backbone_stages",
    "find_stages",
    "resolve",
]
