import ctypes

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pat_mmdet.models.acceleration import onednn
from pat_mmdet.models.acceleration.onednn import onednn_linear, onednn_supported

needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="this torch is built without oneDNN"
)


@needs_onednn
def test_onednn_is_available():
    """A private operator of torch: a new version may have renamed it."""
    assert onednn.ONEDNN_AVAILABLE


@needs_onednn
def test_onednn_product_is_taken(monkeypatch):
    taken = []
    product = onednn._product
    monkeypatch.setattr(onednn, "_product", lambda *args: taken.append(args) or product(*args))
    x, weight = torch.randn(5, 8, requires_grad=True), torch.randn(12, 8, requires_grad=True)
    onednn_linear(x, weight).sum().backward()
    assert len(taken) == 3  # the output and both gradients


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("reduce", [torch.sum, lambda y: (y * y).mean()], ids=["sum", "square"])
def test_linear(bias, frozen, reduce):
    """The gradient of a sum has strides of 0; it must do as well."""
    x = torch.randn(2, 8, 5).transpose(1, 2).requires_grad_()
    layer = nn.Linear(8, 12, bias=bias).requires_grad_(not frozen)
    inputs = [x, *layer.parameters()]
    out, expected = onednn_linear(x, layer.weight, layer.bias), layer(x)
    torch.testing.assert_close(out, expected)
    wanted = [value for value in inputs if value.requires_grad]
    grads, others = (torch.autograd.grad(reduce(y), wanted) for y in (out, expected))
    for grad, other in zip(grads, others):
        torch.testing.assert_close(grad, other)


def test_frozen_linear_saves_no_input():
    saved = []
    layer = nn.Linear(8, 12).requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        onednn_linear(torch.randn(5, 8, requires_grad=True), layer.weight, layer.bias)
    assert [x.shape for x in saved] == [layer.weight.shape]


def test_other_precisions_are_not_replaced():
    x, weight, bias = (torch.randn(shape) for shape in ((5, 8), (12, 8), (12,)))
    double = [value.double() for value in (x, weight, bias)]
    assert torch.equal(onednn_linear(*double), F.linear(*double))
    assert not onednn_supported(x.double()) and not onednn_supported(x.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert onednn_linear(x, weight, bias).dtype == torch.bfloat16


def test_malloc_trim_is_disabled_by_mallopt(monkeypatch):
    calls = []
    libc = type("Libc", (), {"mallopt": staticmethod(lambda *args: calls.append(args))})
    monkeypatch.setattr(ctypes, "CDLL", lambda name: libc)
    onednn.disable_malloc_trim()
    # M_MMAP_MAX and M_TRIM_THRESHOLD of malloc.h.
    assert calls == [(-4, 0), (-1, 2**31 - 1)]
    del libc.mallopt
    onednn.disable_malloc_trim()  # no glibc
    assert len(calls) == 2
