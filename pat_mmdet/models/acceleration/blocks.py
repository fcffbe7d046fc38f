"""Compilation and recomputation of the repeated blocks of a network."""

from __future__ import annotations

from typing import Any

from mmengine.logging import print_log
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pat_mmdet.models.acceleration.utils import mix_in

# "Block" stands for all classes whose names end with it.
_BLOCKS = ("Bottleneck", "InvertedResidual", "TransformerEncoderLayer", "Block")
# Graphs of a block: training or evaluation, with and without gradients, sizes of images.
_GRAPHS_PER_BLOCK = 8


def compile_blocks(*networks: nn.Module) -> None:
    """Compile each block of the networks, in place, when it is first run.

    Hooks on a block run outside of the compiled code. A deep copy is not compiled.

    Args:
        networks (nn.Module): All networks that are compiled in this process.

    Raises:
        ValueError: If a network has no blocks.
    """
    from torch._dynamo import config  # slow to import

    blocks = [block for network in networks for block in _blocks(network)]
    # Blocks of one class share a limit of compiled graphs, beyond which they run uncompiled.
    config.cache_size_limit = max(config.cache_size_limit, _GRAPHS_PER_BLOCK * len(blocks))
    for block in blocks:
        block.compile()
    print_log(f"compiled: {len(blocks)} blocks", "current")


def recompute_blocks(network: nn.Module) -> None:
    """Save only the inputs of blocks for the backward pass, which runs them again.

    For a frozen network in eval mode: nothing in it may be random, or count its passes.

    Args:
        network (nn.Module): The network, changed in place.

    Raises:
        ValueError: If the network has no blocks.
    """
    for block in _blocks(network):
        mix_in(_RecomputedBlock, block, "Recomputed")


class _RecomputedBlock:
    """A block that is checkpointed where its input requires a gradient."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block."""
        forward = super().forward
        if not any(isinstance(x, Tensor) and x.requires_grad for x in args):
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)


def _blocks(network: nn.Module) -> list[nn.Module]:
    """Return the outermost modules whose class names end as those of blocks do.

    Raises:
        ValueError: If there are none.
    """
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
