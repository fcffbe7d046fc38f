"""Inputs of methods, and plain values to compare with."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def normal(*shape, seed=0, scale=1.0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * scale


def build_layers(method, student, teacher):
    """Builds a method's layers as a distiller does."""
    method.check_networks(student, teacher)
    method.build_layers(student, teacher)
    return method


def numbers(tensor):
    return tensor.detach().double().tolist()


def close(value, expected):
    torch.testing.assert_close(value.double(), torch.tensor(expected).double(), rtol=2e-5, atol=0)


class NoWaiting(TorchDispatchMode):
    """Fails at operations that make a GPU wait for the processor or the other way round."""

    waiting = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "unique", "equal")

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert not name.startswith(self.waiting), f"{name} waits for the device"
        if name == "index":
            assert all(i is None or i.dtype != torch.bool for i in args[1])
        return func(*args, **(kwargs or {}))
