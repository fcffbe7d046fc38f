"""Trainable layers of the distillation methods; they need PyTorch alone."""

from .afp import AdaptiveFeedbackPrompt, SqueezeExcite, shifted_means, valid_fractions
from .branches import MapBranch, TokenBranch
from .projectors import ChannelProjector, FeatureProjector, MapAligner, TokenAligner
from .raa import RegionAwareAttention

__all__ = [
    "AdaptiveFeedbackPrompt",
    "ChannelProjector",
    "FeatureProjector",
    "MapAligner",
    "MapBranch",
    "RegionAwareAttention",
    "SqueezeExcite",
    "TokenAligner",
    "TokenBranch",
    "shifted_means",
    "valid_fractions",
]
