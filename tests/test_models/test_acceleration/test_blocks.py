import copy

import pytest
import torch
from helpers import classifiers
from helpers.networks import assert_equal_networks, changed_pair
from mmengine.registry import MODELS, init_default_scope
from torch import nn
from torch._dynamo import config

from pat_mmdet.models.acceleration import blocks
from pat_mmdet.models.acceleration.blocks import compile_blocks, recompute_blocks
from pat_mmdet.models.task_modules import Recorder


class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.linear = nn.Linear(width, width + 1)

    def forward(self, x):
        return torch.relu(self.linear(x))


@pytest.fixture
def graphs(monkeypatch):
    """The graphs that are compiled, traced by dynamo and run as they are."""
    found = []
    compiled = nn.Module.compile
    monkeypatch.setattr(
        nn.Module,
        "compile",
        lambda self: compiled(self, backend=lambda graph, _: found.append(graph) or graph),
    )
    limit, config.cache_size_limit = config.cache_size_limit, 8
    yield found
    config.cache_size_limit = limit
    torch._dynamo.reset()


def resnet():
    init_default_scope("mmpretrain")
    return MODELS.build(classifiers.config("resnet18", channels=(4, 4, 4, 4)))


def test_compiled_blocks_keep_hooks(graphs):
    plain, compiled = changed_pair(resnet(), compile_blocks)
    recorder = Recorder(compiled, outputs={"end": "model.layer2.1"})
    with recorder.recording() as records:
        assert_equal_networks(plain, compiled, torch.randn(2, 3, 64, 64))
    assert graphs, "dynamo compiled nothing"
    assert records["end"][0].shape == (2, 4, 8, 8)


def test_every_block_is_compiled(graphs):
    """Blocks of one class are no more than 8 to dynamo, unless it is told otherwise."""
    widths = range(1, 13)
    network = nn.Sequential(*(Block(width) for width in widths))
    compile_blocks(network)
    for _ in range(2):
        network(torch.randn(2, 1))
        with torch.no_grad():
            network(torch.randn(2, 1))
    assert len(graphs) == 2 * len(widths)


def test_limit_of_graphs_is_raised_once(graphs):
    networks = [nn.Sequential(Block(2), Block(3)) for _ in range(2)]
    for _ in range(2):
        compile_blocks(*networks)
        assert config.cache_size_limit == 32
    compile_blocks(networks[0])
    assert config.cache_size_limit == 32


@pytest.mark.parametrize("change", [compile_blocks, recompute_blocks])
def test_deep_copy(change, graphs):
    network = nn.Sequential(Block(2), Block(3))
    change(network)
    x = torch.randn(4, 2, requires_grad=True)
    before = network(x)
    copied = copy.deepcopy(network)
    torch.testing.assert_close(copied(x), before)
    with torch.no_grad():
        for param in copied.parameters():
            param.zero_()
    assert not copied(x).any()
    assert torch.equal(network(x), before)


def test_recomputed_blocks_are_equal_and_taken(monkeypatch):
    taken = []
    checkpoint = blocks.checkpoint
    monkeypatch.setattr(
        blocks, "checkpoint", lambda *args, **kwargs: taken.append(1) or checkpoint(*args, **kwargs)
    )
    plain, recomputed = changed_pair(resnet(), recompute_blocks)
    assert_equal_networks(plain, recomputed, torch.randn(2, 3, 64, 64))
    assert len(taken) == 8
    with torch.no_grad():
        recomputed(torch.randn(2, 3, 64, 64))
    assert len(taken) == 8, "without a gradient nothing is run again"


def test_networks_without_blocks_are_refused():
    for change in (compile_blocks, recompute_blocks):
        with pytest.raises(ValueError, match="no blocks are found in Sequential: no class"):
            change(nn.Sequential(nn.Linear(2, 2)))
