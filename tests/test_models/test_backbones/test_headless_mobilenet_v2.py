import copy

import pytest
import torch
from mmdet.models.backbones import MobileNetV2

from pat_mmdet.models.backbones import HeadlessMobileNetV2


def equal(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


@pytest.mark.parametrize("indices", [(1, 2, 4, 6), (2,), (0, 3), (6, 7)])
def test_headless_mobilenet_equals_mobilenet(indices):
    torch.manual_seed(0)
    parent = MobileNetV2(widen_factor=0.25, out_indices=indices)
    headless = HeadlessMobileNetV2(widen_factor=0.25, out_indices=indices)
    state = parent.state_dict()
    state["conv1.bn.running_mean"] += 0.3
    headless.load_state_dict(state, strict=True)
    other = MobileNetV2(widen_factor=0.25, out_indices=indices)
    other.load_state_dict(headless.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 96)
    for mode in (False, True):
        for net in (parent, headless, other):
            net.train(mode)
        own, theirs, back = (copy.deepcopy(net)(images) for net in (headless, parent, other))
        assert isinstance(own, tuple) and equal(own, theirs) and equal(own, back)


@pytest.mark.parametrize("options", [{}, dict(frozen_stages=1), dict(norm_eval=True)])
@pytest.mark.parametrize("indices", [(1, 2, 4, 6), (1, 2), (0, 7)])
def test_headless_mobilenet_has_no_unused_parameters(indices, options):
    net = HeadlessMobileNetV2(widen_factor=0.25, out_indices=indices, **options)
    net.train()
    sum(x.square().mean() for x in net(torch.randn(2, 3, 64, 96))).backward()
    for name, param in net.named_parameters():
        assert (param.grad is not None) == param.requires_grad, name
    trained = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    names = ["conv1", *net.layers][: max(indices) + 2]
    assert trained == set(names[2 if "frozen_stages" in options else 0 :])


def test_headless_mobilenet_frozen_stages():
    # DistributedDataParallel wraps it before train() is called.
    net = HeadlessMobileNetV2(widen_factor=0.25, out_indices=(1, 2, 4, 6), frozen_stages=1)
    before = {name for name, param in net.named_parameters() if param.requires_grad}
    net.train()
    assert before == {name for name, param in net.named_parameters() if param.requires_grad}
