"""The repeated blocks of a network, compiled or run a second time to save memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

# Besides all classes whose names end with "Block".
_BLOCKS = ("Bottleneck", "InvertedResidual", "TransformerEncoderLayer", "Block")


def compile_blocks(network: nn.Module) -> None:
    """Compiles each block when it is first run; hooks on a block itself are not part of it.

    Args:
        network (nn.Module): Changed in place.

    Raises:
        ValueError: If no blocks are found.
    """
    from torch._dynamo import config  # slow to import

    blocks = _blocks(network)
    # Blocks of one class share the count of compilations, beyond which a block is run uncompiled.
    config.cache_size_limit += 8 * len(blocks)
    for block in blocks:
        block.forward = torch.compile(block.forward)


def recompute_blocks(network: nn.Module) -> None:
    """Keeps the inputs of blocks alone for the backward pass, which runs them once more.

    For a frozen network in eval mode: nothing in it may be random, nor count its runs.

    Args:
        network (nn.Module): Changed in place.

    Raises:
        ValueError: If no blocks are found.
    """
    for block in _blocks(network):
        block.forward = partial(_recomputed, block.forward)


def _recomputed(forward: Callable, *args: Any, **kwargs: Any) -> Any:
    if not any(isinstance(x, Tensor) and x.requires_grad for x in args):
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _blocks(network: nn.Module) -> list[nn.Module]:
    """Finds the outermost blocks by the names of their classes."""
    names = [
        name for name, module in network.named_modules() if type(module).__name__.endswith(_BLOCKS)
    ]
    outermost = [n for n in names if not any(n.startswith(f"{other}.") for other in names)]
    if not outermost:
        raise ValueError(
            f"no blocks are found in {type(network).__name__}: no class in it has a name that "
            f"ends with {', '.join(_BLOCKS)}"
        )
    return [network.get_submodule(name) for name in outermost]
