from types import SimpleNamespace

import pytest
import torch
from helpers.detectors import batch, build, pair_config, train_step, trainable
from mmengine.registry import HOOKS

from pat_mmdet.engine.hooks import DistillWeightHook


def runner(model=None, max_iters=100):
    model = SimpleNamespace(distill_weight=None) if model is None else model
    return SimpleNamespace(model=model, max_iters=max_iters, iter=0)


def weights(iterations, max_iters=100, **settings):
    hook = HOOKS.build(dict(type="DistillWeightHook", **settings))
    made = runner(max_iters=max_iters)
    hook.before_train(made)
    values = []
    for made.iter in iterations:
        hook.before_train_iter(made, 0, {})
        values.append(made.model.distill_weight)
    return values


def test_schedules():
    assert weights((0, 49, 50, 99), end=50) == [1, 1, 0, 0]
    assert weights((0, 25, 50, 75, 99), schedule="linear") == pytest.approx(
        [1, 0.75, 0.5, 0.25, 0.01]
    )
    assert weights((0, 20, 30, 40, 60, 80), schedule="linear", begin=20, end=60) == [
        1, 1, 0.75, 0.5, 0, 0,
    ]  # fmt: skip
    assert weights((0, 25, 50, 75, 100), schedule="cosine") == pytest.approx(
        [1, 0.8535533906, 0.5, 0.1464466094, 0]
    )
    assert weights((0, 5, 10), schedule="linear", end=10, start_weight=0, end_weight=2) == [0, 1, 2]


def test_wrong_settings():
    with pytest.raises(ValueError, match=r"unknown schedule 'step'.*constant, linear, cosine"):
        DistillWeightHook(schedule="step")
    with pytest.raises(ValueError, match="begin=100 is not before the end, 100"):
        weights((0,), begin=100)
    with pytest.raises(ValueError, match="Linear has no teacher"):
        DistillWeightHook().before_train(runner(torch.nn.Linear(1, 1)))


@pytest.fixture
def model():
    return build(pair_config())


def losses_with(model, weight):
    model.distill_weight = weight
    data = batch(model)
    torch.manual_seed(5)
    return train_step(model, data)


def test_weight_scales_method_losses(model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    plain = losses_with(model, None)
    model.load_state_dict(state)
    model.distill._previous.clear()
    half = losses_with(model, 0.5)
    assert "distill_weight" not in plain and half.pop("distill_weight") == 0.5
    assert half.keys() == plain.keys()
    for name, value in half.items():
        factor = 0.5 if name in ("loss_kd", "loss_fd", "loss_reg") else 1
        for x, y in zip(*(v if isinstance(v, list) else [v] for v in (value, plain[name]))):
            torch.testing.assert_close(x, factor * y)


def test_zero_weight_skips_teacher(model):
    model.teacher.register_forward_pre_hook(lambda *args: pytest.fail("the teacher ran"))
    model.teacher.backbone.register_forward_pre_hook(lambda *args: pytest.fail("the teacher ran"))
    losses = losses_with(model, 0)
    assert losses["loss_distill"] == 0 and losses["distill_weight"] == 0
    assert "loss_fd" not in losses
    for name, param in trainable(model).items():
        assert param.grad is not None, name
        assert not name.startswith("distill.") or not param.grad.any()
    assert any(param.grad.any() for param in model.student.parameters() if param.grad is not None)


def test_weight_is_logged(model):
    model.distill_weight = 0.25
    data = batch(model)
    losses = model(**data, mode="loss")
    total, logged = model.parse_losses(losses)
    assert logged["distill_weight"] == 0.25
    parts = sum(value for key, value in logged.items() if key.startswith("loss_"))
    torch.testing.assert_close(total, parts)
