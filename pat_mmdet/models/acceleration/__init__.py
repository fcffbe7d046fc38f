"""Faster computation: fast layers, oneDNN, compiled and recomputed blocks.

:func:`use_fast_layers` is the switch of all fast layers. Nothing outside of this package has to
know them: they take the place of plain layers and give the same to rounding.
"""

from .blocks import compile_blocks, recompute_blocks
from .fast_layers import use_fast_layers
from .onednn import disable_malloc_trim

__all__ = [
    "compile_blocks",
    "disable_malloc_trim",
    "recompute_blocks",
    "use_fast_layers",
]
