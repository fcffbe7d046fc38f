"""Faster forms of networks, numerically equivalent to the plain ones."""

from .blocks import compile_blocks, recompute_blocks
from .fast_layers import use_fast_layers
from .onednn import disable_malloc_trim, onednn_linear, onednn_supported

__all__ = [
    "compile_blocks",
    "disable_malloc_trim",
    "onednn_linear",
    "onednn_supported",
    "recompute_blocks",
    "use_fast_layers",
]
