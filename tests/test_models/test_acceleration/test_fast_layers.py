"""Fast layers: each is taken, and gives what the plain layer gives."""

import copy

import pytest
import torch
import torch.nn.functional as F
from helpers import classifiers
from helpers.networks import assert_equal_networks, changed_pair
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from pat_mmdet.models.acceleration import fast_layers, use_fast_layers
from pat_mmdet.models.layers import (
    AdaptiveFeedbackPrompt,
    MapAligner,
    RegionAwareAttention,
    TokenAligner,
)
from pat_mmdet.models.losses import HierarchicalContextLoss

# A network of each family of timm.
TEACHERS = (
    "swin_tiny_patch4_window7_224", "vit_small_patch16_224", "small_mixer", "small_resmlp",
    "convnext_tiny", "tiny_vit_5m_224", "resnet18",
)  # fmt: skip


def forms(network):
    return {type(module).__name__ for module in network.modules()}


@pytest.mark.parametrize("name", [*TEACHERS, *classifiers.MMPRETRAIN])
def test_classifiers(name):
    init_default_scope("mmpretrain")
    own, faster = changed_pair(MODELS.build(classifiers.config(name)), use_fast_layers)
    assert ("FastSwinTransformerBlock" in forms(faster)) == name.startswith("swin")
    assert "FastLinear" in forms(faster)
    assert_equal_networks(own, faster, torch.randn(2, 3, classifiers.SIZE, classifiers.SIZE))


def test_names_and_weights_stay():
    init_default_scope("mmpretrain")
    own, faster = changed_pair(
        MODELS.build(classifiers.config("swin_tiny_patch4_window7_224")), use_fast_layers
    )
    assert list(own.state_dict()) == list(faster.state_dict())
    assert [name for name, _ in own.named_modules()] == [n for n, _ in faster.named_modules()]


class Counted(nn.Module):
    """A module that calls another with what it gets itself."""

    def __init__(self, module):
        super().__init__()
        self.module = module
        self.calls = 0

    def forward(self, *args):
        self.calls += 1
        return self.module(*args)


LAYERS = {
    "raa": lambda: RegionAwareAttention([3, 5], [(24, 24), (8, 12)], grid=2, dim=16, num_heads=4),
    "map aligner": lambda: MapAligner(6, 10),
    "token aligner": lambda: TokenAligner(6, 4, 10, (3, 5)),
    "prompt": lambda: AdaptiveFeedbackPrompt(8, 6, ratio=2),
    "spatial prompt": lambda: AdaptiveFeedbackPrompt(8, 6, "spatial", ratio=2),
    "prompt without feedback": lambda: AdaptiveFeedbackPrompt(8, None, ratio=2),
}


def run_layer(name, layer):
    """The outputs of a layer, its inputs that get a gradient first."""
    torch.manual_seed(3)
    if name == "raa":
        inputs = [torch.randn(2, 3, 24, 24), torch.randn(2, 5, 7, 9)]
        inputs = [x.requires_grad_() for x in inputs]
        return inputs, layer(inputs)
    shape = (2, 6, 2, 2) if "aligner" in name else (2, 8, 9, 7)
    x = torch.randn(shape).requires_grad_()
    if "aligner" in name:
        return [x], [layer(x, (3, 5))]
    gap = torch.randn(2, 6, 4, 5)
    feedback = None if layer.feedback_channels is None else layer.encode_feedback(gap, (9, 7))
    return [x], [layer(x, feedback)]


def randomized(layer):
    torch.manual_seed(2)
    for param in layer.parameters():
        nn.init.normal_(param, std=0.5)
    return layer


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_methods(name):
    plain = randomized(LAYERS[name]())
    fast = copy.deepcopy(plain)
    use_fast_layers(fast)
    assert any(form.startswith("Fast") for form in forms(fast))
    assert list(fast.state_dict()) == list(plain.state_dict())
    results = []
    for layer in (plain, fast):
        inputs, outputs = run_layer(name, layer)
        wanted = [*inputs, *layer.parameters()]
        grads = torch.autograd.grad(sum(out.square().sum() for out in outputs), wanted)
        results.append([*outputs, *grads])
    for one, other in zip(*results):
        # The gradient of the key's bias is rounding noise around 0.
        scale = max(one.abs().max().item(), 1.0)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_every_submodule_is_called(name, fast):
    """Weights are used by the modules that hold them alone, so that these can be wrapped."""
    layer = randomized(LAYERS[name]())
    if fast:
        use_fast_layers(layer)
    expected = run_layer(name, layer)[1]
    wrapped = []
    for parent in list(layer.modules()):
        for child, module in list(parent.named_children()):
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                wrapped.append(Counted(module))
                # RAA reads the patch size of its embeddings.
                wrapped[-1].kernel_size = getattr(module, "kernel_size", None)
                parent.register_module(child, wrapped[-1])
    assert wrapped
    for one, other in zip(run_layer(name, layer)[1], expected):
        torch.testing.assert_close(one, other)
    assert all(module.calls for module in wrapped)


def taken(monkeypatch, function):
    """Counts the calls of a function of the fast layers."""
    calls = []
    original = getattr(fast_layers, function)
    monkeypatch.setattr(fast_layers, function, lambda *args: calls.append(1) or original(*args))
    return calls


@pytest.mark.parametrize(
    "options, shape, product",
    [
        (dict(kernel_size=4, stride=4), (2, 3, 8, 12), True),
        (dict(kernel_size=4, stride=4, bias=False), (2, 3, 8, 12), True),
        (dict(kernel_size=(2, 3), stride=(2, 3)), (2, 3, 8, 12), True),
        (dict(kernel_size=5), (2, 3, 5, 5), True),
        (dict(kernel_size=1), (2, 3, 5, 5), True),
        (dict(kernel_size=1), (2, 3, 5, 8), False),  # many windows
        (dict(kernel_size=3), (2, 3, 5, 5), False),  # they overlap
        (dict(kernel_size=4, stride=4), (2, 3, 9, 12), False),  # a row is left over
        (dict(kernel_size=4, stride=2), (2, 3, 4, 4), True),  # a single window
        (dict(kernel_size=1), (3, 5, 5), False),  # no batch
    ],
    ids=str,
)
def test_convolution(options, shape, product, monkeypatch):
    plain = nn.Conv2d(3, 6, **options)
    fast = copy.deepcopy(plain)
    use_fast_layers(fast)
    calls = taken(monkeypatch, "onednn_linear")
    x = torch.randn(shape, requires_grad=True)
    grads = []
    for conv in (plain, fast):
        out = conv(x)
        grads.append([out, *torch.autograd.grad(out.square().sum(), [x, *conv.parameters()])])
    assert len(calls) == product
    for one, other in zip(*grads):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width, copied", [(64, False), (65, True)])
def test_linear_layer_on_transposed_input(width, copied, bias, monkeypatch):
    plain = nn.Linear(width, 6, bias=bias)
    fast = copy.deepcopy(plain)
    use_fast_layers(fast)
    calls = taken(monkeypatch, "onednn_linear")
    x = torch.randn(2, width, 7, requires_grad=True)
    grads = []
    for linear in (plain, fast):
        out = linear(x.transpose(1, 2))
        grads.append([out, *torch.autograd.grad(out.square().sum(), [x, *linear.parameters()])])
    assert len(calls) == copied
    assert grads[1][0].transpose(1, 2).is_contiguous() != copied
    for one, other in zip(*grads):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_log_of_replaced_layers(monkeypatch):
    lines = []
    monkeypatch.setattr(fast_layers, "print_log", lambda line, logger: lines.append(line))
    init_default_scope("mmdet")
    swin = dict(type="SwinTransformer", embed_dims=8, depths=(1, 1), num_heads=(1, 2))
    swin = MODELS.build(dict(swin, strides=(4, 2), out_indices=(0, 1)))
    use_fast_layers(swin, HierarchicalContextLoss(), nn.ReLU())
    assert lines == [
        "layers replaced by faster ones: SwinTransformer: 1 Conv2d, 9 Linear (not replaced: "
        "2 ShiftWindowMSA (it is not frozen)); HierarchicalContextLoss: 1 "
        "HierarchicalContextLoss; ReLU: none"
    ]


def test_linear_layers_stay_without_onednn(monkeypatch):
    monkeypatch.setattr(fast_layers, "ONEDNN_AVAILABLE", False)
    layer = nn.Linear(2, 2)
    use_fast_layers(layer)
    assert type(layer) is nn.Linear


def test_subclasses_are_left_alone():
    """Their forward may be another."""

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * F.linear(x, self.weight, self.bias)

    network = nn.Sequential(Doubled(2, 2), nn.MultiheadAttention(4, 2))
    use_fast_layers(network)
    assert type(network[0]) is Doubled and forms(network[1].out_proj) == {
        "NonDynamicallyQuantizableLinear"
    }


def test_deep_copy():
    layer = nn.Linear(3, 2)
    use_fast_layers(layer)
    copied = copy.deepcopy(layer)
    nn.init.zeros_(copied.weight)
    x = torch.randn(4, 3)
    assert torch.equal(copied(x), copied.bias.expand(4, 2)) and layer(x).std() > 0
