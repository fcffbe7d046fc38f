"""Comparison of a network with its faster form."""

import copy

import torch


def assert_equal_networks(first, second, inputs, run=lambda network, x: network(x)):
    """Outputs and gradients for the input are the same to rounding."""
    results = []
    for network in (first, second):
        x = inputs.clone().requires_grad_()
        outputs = run(network, x)
        outputs = list(outputs) if isinstance(outputs, (tuple, list)) else [outputs]
        torch.autograd.backward(outputs, [torch.cos(out.detach()) for out in outputs])
        results.append([*outputs, x.grad])
    for one, other in zip(*results):
        assert one.shape == other.shape
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * one.abs().max().item())


def shaken(network):
    """A frozen network none of whose weights hides what lies behind it."""
    torch.manual_seed(1)
    with torch.no_grad():
        for param in network.parameters():
            param.add_(0.1 * torch.randn_like(param))
    network.eval()
    network.requires_grad_(False)
    return network


def changed_pair(network, change):
    """A frozen network as it is, and a copy of it that was changed in place."""
    changed = copy.deepcopy(shaken(network))
    change(changed)
    return network, changed
