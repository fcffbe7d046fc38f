"""What a method sees of a network: its outputs in a step, and its shapes at build time."""

from .network_outputs import FeatureSpec, NetworkOutputs

__all__ = ["FeatureSpec", "NetworkOutputs"]
