"""Faster forms of a frozen teacher: each gives what the library's own layer gives."""

import copy
from functools import partial

import pytest
import torch
from helpers import classifiers, detectors
from helpers.steps import observe_step
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from pat_mmdet.models.acceleration import fast_layers, onednn
from pat_mmdet.models.acceleration.blocks import compile_blocks, recompute_blocks
from pat_mmdet.models.acceleration.fast_layers import use_fast_layers
from pat_mmdet.models.task_modules import Recorder


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


def both(network):
    """A frozen network as it is, and sped up."""
    faster = copy.deepcopy(shaken(network))
    use_fast_layers(faster)
    return network, faster


def forms(network):
    return {type(module).__name__ for module in network.modules()}


@pytest.mark.parametrize("heads, window", [((1, 2, 4, 8), 7), ((2, 2, 2, 2), 4)])
@pytest.mark.parametrize("size", [(2, 64, 64), (1, 100, 140), (3, 33, 240)])
def test_mmdet_swin(size, heads, window):
    init_default_scope("mmdet")
    cfg = dict(
        type="SwinTransformer",
        embed_dims=16,
        depths=(2, 2, 2, 2),
        num_heads=heads,
        window_size=window,
    )
    own, faster = both(MODELS.build(cfg))
    assert {"FrozenShiftWindowMSA", "FrozenLinear"} <= forms(faster)
    batch, *image = size
    assert_equal_networks(own, faster, torch.randn(batch, 3, *image))


@pytest.mark.parametrize("pad_small_map", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (56, 112)])
def test_mmpretrain_swin(size, pad_small_map):
    init_default_scope("mmpretrain")
    cfg = dict(
        type="SwinTransformer",
        arch=dict(embed_dims=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8]),
        img_size=size[0],
        window_size=7,
        pad_small_map=pad_small_map,
        out_indices=(0, 1, 2, 3),
    )
    own, faster = both(MODELS.build(cfg))
    assert "FrozenShiftWindowMSA" in forms(faster)
    images = torch.randn(2, 3, *size)
    if not pad_small_map:
        # Its own refusal of maps smaller than a window is kept.
        for network in (own, faster):
            with pytest.raises(AssertionError, match="pad_small_map"):
                network(images)
        return
    assert_equal_networks(own, faster, images)


@pytest.mark.parametrize("name", [*classifiers.TIMM, *classifiers.MMPRETRAIN])
def test_classifiers(name):
    init_default_scope("mmpretrain")
    own, faster = both(MODELS.build(classifiers.config(name)))
    assert ("FrozenSwinTransformerBlock" in forms(faster)) == name.startswith("swin")
    assert "FrozenLinear" in forms(faster)
    assert_equal_networks(own, faster, torch.randn(2, 3, classifiers.SIZE, classifiers.SIZE))


@pytest.mark.parametrize("shape", [(56, 56), (50, 41)])
def test_timm_swin_with_windows_that_are_padded(shape):
    import timm

    network = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=tuple(4 * side for side in shape),
        embed_dim=16,
        depths=(2, 2),
        num_heads=(1, 2),
        strict_img_size=False,
    )
    own, faster = both(network)
    assert_equal_networks(own, faster, torch.randn(2, 3, *(4 * side for side in shape)))


def test_names_and_weights_stay():
    init_default_scope("mmpretrain")
    own, faster = both(MODELS.build(classifiers.config("swin_tiny_patch4_window7_224")))
    assert list(own.state_dict()) == list(faster.state_dict())
    assert [name for name, _ in own.named_modules()] == [n for n, _ in faster.named_modules()]


def test_other_precisions_take_the_ordinary_product():
    layer = nn.Linear(8, 6).requires_grad_(False)
    use_fast_layers(layer)
    x = torch.randn(3, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    double = layer.double()(x.double())
    torch.testing.assert_close(double, x.double() @ layer.weight.t() + layer.bias)
    assert not onednn.onednn_supported(x.double()) and not onednn.onednn_supported(x.bfloat16())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("reduce", [torch.sum, lambda y: (y * y).mean()], ids=["sum", "square"])
def test_linear(bias, frozen, reduce):
    """The gradient of a sum has strides of 0; it must do as well."""
    x = torch.randn(2, 8, 5).transpose(1, 2).requires_grad_()
    layer = nn.Linear(8, 12, bias=bias).requires_grad_(not frozen)
    inputs = [x, *layer.parameters()]
    out, expected = onednn.onednn_linear(x, layer.weight, layer.bias), layer(x)
    torch.testing.assert_close(out, expected)
    wanted = [value for value in inputs if value.requires_grad]
    grads, others = (torch.autograd.grad(reduce(y), wanted) for y in (out, expected))
    for grad, other in zip(grads, others):
        torch.testing.assert_close(grad, other)


def test_linear_keeps_no_input_of_a_frozen_layer():
    kept = []
    layer = nn.Linear(8, 12).requires_grad_(False)
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        onednn.onednn_linear(torch.randn(5, 8, requires_grad=True), layer.weight, layer.bias)
    assert [x.shape for x in kept] == [layer.weight.shape]


def test_linear_in_double_precision_is_the_ordinary_one():
    x, weight, bias = (torch.randn(shape).double() for shape in ((5, 8), (12, 8), (12,)))
    assert torch.equal(
        onednn.onednn_linear(x, weight, bias), torch.nn.functional.linear(x, weight, bias)
    )


def test_kept_memory_is_used_again():
    """After `disable_malloc_trim` a block that was freed is there without a page fault."""
    import resource

    if not hasattr(__import__("ctypes").CDLL(None), "mallopt"):
        pytest.skip("no glibc")
    onednn.disable_malloc_trim()

    def faults():
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    for _ in range(2):
        torch.empty(2**25).fill_(1.0)
    before = faults()
    torch.empty(2**25).fill_(1.0)
    assert faults() - before < 2**27 // 4096 // 10


def test_plans_are_kept_by_size():
    fast_layers._plan.cache_clear()
    init_default_scope("mmdet")
    cfg = dict(
        type="SwinTransformer", embed_dims=8, depths=(2, 2), num_heads=(1, 2),
        strides=(4, 2), out_indices=(0, 1), window_size=4,
    )  # fmt: skip
    _, faster = both(MODELS.build(cfg))
    for _ in range(3):
        faster(torch.randn(1, 3, 64, 96))
    assert fast_layers._plan.cache_info().misses == 4  # two stages, shifted or not


# In a distiller.


def step(model, data):
    torch.manual_seed(0)
    losses = model(**data, mode="loss")
    total, _ = model.parse_losses(losses)
    total.backward()
    grads = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
    model.zero_grad(set_to_none=True)
    return total.detach(), grads


def make(task, **options):
    if task == "detection":
        cfg = detectors.pair_config(**{f"model.{key}": value for key, value in options.items()})
        model = detectors.build(cfg)
        return model, detectors.batch(model)
    cfg = classifiers.distiller("resnet18", "swin_tiny_patch4_window7_224", "PAT")
    model = classifiers.build({**cfg, **options})
    return model, classifiers.batch(model)


@pytest.mark.parametrize("task", ["classification", "detection"])
@pytest.mark.parametrize(
    "options", [dict(fast_teacher=False), dict(recompute_teacher=True)], ids=str
)
def test_a_step_is_the_same_with_and_without(task, options):
    results = []
    for settings in ({}, options):
        model, data = make(task, **settings)
        with torch.no_grad():
            for block in model.distill.prompts.values():
                block.beta.fill_(0.3)
        results.append(step(model, data))
    (loss, grads), (other_loss, other_grads) = results
    torch.testing.assert_close(loss, other_loss, rtol=1e-4, atol=1e-4)
    for name, grad in grads.items():
        other = other_grads[name]
        torch.testing.assert_close(
            grad, other, rtol=1e-3, atol=2e-4 * max(grad.abs().max().item(), 1e-3)
        )


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("task", ["classification", "detection"])
def test_a_teacher_in_half_precision(task, dtype):
    model, data = make(task, teacher_dtype=dtype)
    step = observe_step(model, data)
    losses, plain, prompted = step.losses, step.teacher, step.prompted
    assert plain.logits.dtype == getattr(torch, dtype)
    assert torch.equal(plain.logits, prompted.logits)
    for name in ("loss_kd", "loss_fd", "loss_reg"):
        assert losses[name].dtype == torch.float32 and torch.isfinite(losses[name])
    assert next(model.student.parameters()).dtype == torch.float32
    model.parse_losses(losses)[0].backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.requires_grad)


def test_an_unknown_precision_is_refused():
    with pytest.raises(ValueError, match="teacher_dtype='int8'; known: None, 'bfloat16'"):
        make("classification", teacher_dtype="int8")


def test_recomputation_keeps_less():
    kept = {}
    for recompute in (False, True):
        model, data = make("classification", recompute_teacher=recompute)
        sizes = {}
        with torch.autograd.graph.saved_tensors_hooks(
            lambda x, sizes=sizes: sizes.update({x.data_ptr(): x.nbytes}) or x, lambda x: x
        ):
            model(**data, mode="loss")
        kept[recompute] = sum(sizes.values())
    assert kept[True] < 0.9 * kept[False]


def test_compiled_blocks_give_the_same_and_leave_the_hooks(monkeypatch):
    """Traced by dynamo and run as they are, which is what may go wrong between hooks and code."""
    compiled = []
    whole = partial(torch.compile, backend="eager")
    monkeypatch.setattr(torch, "compile", lambda f: compiled.append(f) or whole(f))
    init_default_scope("mmpretrain")
    own, other = both(MODELS.build(classifiers.config("resnet18", channels=(4, 4, 4, 4))))
    recorder = Recorder(other, outputs={"end": "model.layer2.1"})
    compile_blocks(other)
    assert len(compiled) == 8
    with recorder.recording() as records:
        assert_equal_networks(own, other, torch.randn(2, 3, 64, 64))
    assert records["end"][0].shape == (2, 4, 8, 8)


def test_every_block_is_compiled(monkeypatch):
    """Blocks of one class are no more than 8 to dynamo, unless it is told otherwise."""

    class Block(nn.Sequential):
        pass

    sizes = range(1, 13)
    network = nn.Sequential(*(Block(nn.Linear(i, i + 1)) for i in sizes))
    graphs = []
    counting = partial(torch.compile, backend=lambda graph, _: graphs.append(graph) or graph)
    monkeypatch.setattr(torch, "compile", counting)
    compile_blocks(network)
    for _ in range(2):
        network(torch.randn(2, 1))
        with torch.no_grad():
            network(torch.randn(2, 1))
    assert len(graphs) == 2 * len(sizes)


def test_networks_without_blocks_are_refused():
    for change in (compile_blocks, recompute_blocks):
        with pytest.raises(ValueError, match="no blocks are found in Sequential: no class"):
            change(nn.Sequential(nn.Linear(2, 2)))
