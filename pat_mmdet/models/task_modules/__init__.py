"""What distillers use to read and prompt networks: stages, hooks and readers of class scores."""

from .prefix_cache import PrefixCache
from .prompter import Prompt, Prompter
from .recorder import Recorder
from .stages import Stage, backbone_stages, resolve

__all__ = [
    "PrefixCache",
    "Prompt",
    "Prompter",
    "Recorder",
    "Stage",
    "backbone_stages",
    "resolve",
]
