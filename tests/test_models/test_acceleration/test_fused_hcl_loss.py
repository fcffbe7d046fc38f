import pytest
import torch
from torch import nn

from pat_mmdet.models.acceleration import fused_hcl_loss as module
from pat_mmdet.models.acceleration import use_fast_layers
from pat_mmdet.models.acceleration.fused_hcl_loss import fused_hcl_loss
from pat_mmdet.models.losses import HierarchicalContextLoss, hcl_loss

SIZES = [(1, 9), (2, 5), (4, 6), (5, 2), (13, 20)]


def maps(size, layout, batch=2, dtype=torch.float64):
    shape = (batch, *size, 3)
    generator = torch.Generator().manual_seed(1)
    maps = [torch.randn(shape, generator=generator, dtype=dtype).permute(0, 3, 1, 2) for _ in "st"]
    if layout == "maps":
        maps = [x.contiguous() for x in maps]
    elif layout == "mixed":
        maps[0] = maps[0].contiguous()
    return [x.requires_grad_() for x in maps]


@pytest.mark.parametrize(
    ("size", "layout"),
    [*((size, "maps") for size in SIZES), ((13, 20), "tokens"), ((13, 20), "mixed")],
)
def test_equals_the_plain_loss(size, layout):
    results = []
    for loss in (hcl_loss, fused_hcl_loss):
        s, t = maps(size, layout)
        value = 3 * loss(s, t)
        results.append([value.detach(), *torch.autograd.grad(value, [s, t])])
    for one, other in zip(*results):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", ["maps", "tokens"])
def test_gradcheck(layout):
    assert torch.autograd.gradcheck(fused_hcl_loss, maps((5, 6), layout))


def test_half_precision_and_autocast():
    s, t = (x.detach().half() for x in maps((5, 6), "maps"))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = fused_hcl_loss(s, t)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, hcl_loss(s, t))


def test_empty_batch_is_a_connected_zero():
    s, t = maps((5, 6), "maps", batch=0)
    value = fused_hcl_loss(s, t)
    value.backward()
    assert value == 0 and s.grad.shape == s.shape


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"\(1, 3, 5, 6\) and teacher \(2, 3, 5, 6\)"):
        fused_hcl_loss(torch.zeros(1, 3, 5, 6), torch.zeros(2, 3, 5, 6))


def test_saved_tensors():
    saved = []
    s, t = maps((13, 20), "maps", batch=40)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        fused_hcl_loss(s, t)
    assert sum(x.numel() >= s.numel() for x in saved) == 1


def test_fused_loss_is_taken(monkeypatch):
    taken = []
    monkeypatch.setattr(module, "fused_hcl_loss", lambda s, t: taken.append(1))
    network = nn.Sequential(HierarchicalContextLoss())
    s, t = maps((5, 6), "maps")
    network[0](s, t)
    assert not taken
    use_fast_layers(network)
    network[0](s, t)
    assert taken
