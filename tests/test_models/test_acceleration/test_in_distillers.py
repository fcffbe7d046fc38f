"""Faster computation in a training step of a distiller."""

import pytest
import torch
from helpers import classifiers, detectors
from helpers.steps import observe_step


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
def test_teacher_in_half_precision(task, dtype):
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


def test_unknown_precision():
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


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_layers_of_teacher_and_method_are_fast(task):
    model, _ = make(task)
    for network, expected in (
        (model.teacher, {"FastLinear", WINDOWS[task]}),
        (model.distill, {"FastLinear", "FastConv2d", "FastHierarchicalContextLoss"}),
    ):
        assert expected <= {type(module).__name__ for module in network.modules()}
    assert "FastLinear" not in {type(module).__name__ for module in model.student.modules()}


WINDOWS = dict(classification="FastSwinTransformerBlock", detection="FastShiftWindowMSA")
