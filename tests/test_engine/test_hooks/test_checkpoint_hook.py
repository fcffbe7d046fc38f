"""Checkpoints of earlier versions."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from pat_mmdet.engine.hooks import SafeCheckpointHook
from pat_mmdet.models.layers import AdaptiveFeedbackPrompt
from pat_mmdet.models.methods import KD

OPTIMIZERS = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.1),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "plain SGD": lambda params: torch.optim.SGD(params, lr=0.1),
}


class Prompted(BaseModel):
    def __init__(self):
        super().__init__()
        self.distill = KD()
        self.student = nn.Linear(8, 8)
        self.prompt = AdaptiveFeedbackPrompt(8, None)

    def forward(self, inputs):
        return self.prompt(self.student(inputs)[:, :, None, None])


def step(model, optimizer, seed):
    inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    model(inputs).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def as_before(state):
    """Gives β the shape () that it had in checkpoints of earlier versions."""
    if isinstance(state, dict):
        return {key: value if key == "step" else as_before(value) for key, value in state.items()}
    return state.reshape(()) if isinstance(state, torch.Tensor) and state.shape == (1,) else state


@pytest.mark.parametrize("load", [nn.Module.load_state_dict, load_state_dict])
def test_beta_of_earlier_checkpoints(load):
    prompt = AdaptiveFeedbackPrompt(8, 8)
    assert prompt.beta.shape == (1,)
    state = {**prompt.state_dict(), "beta": torch.tensor(0.25)}
    load(prompt, state, strict=True)
    assert prompt.beta.shape == (1,) and prompt.beta.item() == 0.25
    assert state["beta"].shape == ()


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizer_state_of_earlier_checkpoints(name):
    torch.manual_seed(0)
    model, other = Prompted(), Prompted()
    optimizer = OPTIMIZERS[name](model.parameters())
    with torch.no_grad():
        model.prompt.beta.fill_(0.3)
    step(model, optimizer, 0)
    checkpoint = {
        "state_dict": as_before(model.state_dict()),
        "optimizer": as_before(optimizer.state_dict()),
    }
    resumed = OPTIMIZERS[name](other.parameters())
    runner = SimpleNamespace(model=other, _resume=True, optim_wrapper=OptimWrapper(resumed))
    SafeCheckpointHook().after_load_checkpoint(runner, checkpoint)
    other.load_state_dict(checkpoint["state_dict"])
    resumed.load_state_dict(checkpoint["optimizer"])
    for seed in (1, 2):
        step(model, optimizer, seed)
        step(other, resumed, seed)
    assert all(map(torch.equal, model.parameters(), other.parameters()))


def test_state_of_several_optimizers_is_left():
    checkpoint = {"optimizer": {"first": {}, "second": {}}}
    runner = SimpleNamespace(model=Prompted(), _resume=True, optim_wrapper=None)
    SafeCheckpointHook().after_load_checkpoint(runner, checkpoint)
    assert checkpoint == {"optimizer": {"first": {}, "second": {}}}
