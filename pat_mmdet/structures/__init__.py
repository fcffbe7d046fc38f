"""Data that distillers and methods exchange."""

from .network_outputs import FeatureSpec, NetworkOutputs
from .prompt import Prompt, PromptableTeacher
from .requires import Requires

__all__ = ["FeatureSpec", "NetworkOutputs", "Prompt", "PromptableTeacher", "Requires"]
