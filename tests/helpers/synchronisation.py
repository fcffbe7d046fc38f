"""A guard against waiting for the device."""

import torch
from torch.overrides import TorchFunctionMode


class NoSynchronisation(TorchFunctionMode):
    """Refuse whatever would wait for the device or give a shape that depends on values."""

    forbidden = frozenset({"item", "tolist", "numpy", "cpu", "nonzero", "masked_select", "unique"})

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        conversions = ("__bool__", "__int__", "__float__", "__index__", "__contains__")
        assert name not in self.forbidden and name not in conversions, name
        if name == "__getitem__":
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            assert not any(isinstance(i, torch.Tensor) for i in index), "indexing with a tensor"
        return func(*args, **(kwargs or {}))
