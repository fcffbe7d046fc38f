import pytest
import torch
from torch import nn

from pat_mmdet.models.task_modules import PrefixCache


class Counted(nn.Linear):
    """Counts how often it is computed."""

    runs = 0

    def forward(self, x):
        self.runs += 1
        return super().forward(x)


class Chain(nn.Module):
    """Four stages, of which the second one is called twice."""

    def __init__(self):
        super().__init__()
        self.stages = nn.ModuleList(Counted(4, 4) for _ in range(4))

    def forward(self, x):
        x = self.stages[1](self.stages[1](self.stages[0](x)))
        return self.stages[3](self.stages[2](x) + x)

    def runs(self):
        """The runs of each stage since the last call."""
        runs = [stage.runs for stage in self.stages]
        for stage in self.stages:
            stage.runs = 0
        return runs


@pytest.fixture
def chain():
    torch.manual_seed(0)
    return Chain()


def cache_of(chain, **options):
    cache = PrefixCache(chain, "stages.3", lambda: chain(torch.zeros(1, 4)), **options)
    chain.runs()
    return cache


def test_replay_runs_what_comes_after(chain):
    cache, x = cache_of(chain), torch.randn(3, 4)
    with cache.capture():
        plain = chain(x)
    assert chain.runs() == [1, 2, 1, 1]
    with cache.replay():
        assert torch.equal(chain(x), plain)
    # What runs twice in a pass cannot be told apart, and is run.
    assert chain.runs() == [0, 2, 0, 1]
    chain(x)
    assert chain.runs() == [1, 2, 1, 1]


def test_replay_of_the_first_images(chain):
    cache, x = cache_of(chain), torch.randn(3, 4)
    with cache.capture():
        plain = chain(x)
    with cache.replay(num_images=2):
        torch.testing.assert_close(chain(x[:2]), plain[:2])


def test_observed_modules_are_run(chain):
    outer = nn.Sequential(chain)
    cache = PrefixCache(
        outer, "0.stages.3", lambda: outer(torch.zeros(1, 4)), observed=["0.stages.2.weightless"]
    )
    chain.runs()
    with cache.capture():
        outer(torch.randn(1, 4))
    chain.runs()
    with cache.replay():
        outer(torch.randn(1, 4))
    assert chain.runs() == [0, 2, 1, 1]


def test_capture_replaces_and_clear_drops(chain):
    cache, x, y = cache_of(chain), *torch.randn(2, 3, 4)
    for images in (x, y):
        with cache.capture():
            plain = chain(images)
    with cache.replay():
        assert torch.equal(chain(y), plain)
    chain.runs()
    cache.clear()
    with cache.replay():
        chain(x)
    assert chain.runs() == [1, 2, 1, 1]


def test_contexts_end_with_errors(chain):
    cache = cache_of(chain)
    for context in (cache.capture, cache.replay):
        with pytest.raises(RuntimeError, match="inside"), context():
            raise RuntimeError("inside")
    chain(torch.randn(1, 4))
    assert cache._cache == cache._replayed == {}
