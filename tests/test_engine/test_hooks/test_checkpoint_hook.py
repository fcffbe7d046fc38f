"""Checkpoints that load safely: what is saved, what is restored, those of earlier versions."""

import copy
import multiprocessing
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.toy import runner
from mmengine.config import Config
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.optim import MultiStepLR, OptimWrapper
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from pat_mmdet.engine.hooks import SafeCheckpointHook, checkpoint_hook
from pat_mmdet.models.layers import AdaptiveFeedbackPrompt
from pat_mmdet.models.methods import KD
from pat_mmdet.utils import load_weights, read_checkpoint
from pat_mmdet.utils.checkpoint import PickledObject


def test_checkpoints_are_plain_data(toy, tmp_path):
    assert isinstance(toy.message_hub.get_info("best_score"), np.generic)
    names = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert names == ["best_score_iter_2.pth", "iter_2.pth", "iter_4.pth", "iter_6.pth"]
    for name in names:
        checkpoint = torch.load(tmp_path / name, weights_only=True)
        assert checkpoint["meta"]["iter"] == int(name[-5])
    best = checkpoint["message_hub"]["runtime_info"]["best_score"]
    assert type(best) is float and best == 0.25
    assert read_checkpoint(str(tmp_path / "iter_6.pth"))["meta"]["iter"] == 6


def test_method_state_on_resume_only(toy, tmp_path):
    def load(rank=0, **options):
        made = runner(tmp_path, 6, f"load_{rank}_{len(options)}", ema=False, **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint_hook, "get_rank", lambda: rank)
            made.optim_wrapper = made.build_optim_wrapper(made.optim_wrapper)
            made.load_or_resume()
        return made.model.distill.carried

    path = str(tmp_path / "iter_4.pth")
    saved = torch.load(path, weights_only=True)["distill_resume_state"]
    assert torch.equal(load(resume=True, load_from=path)["last"], saved[0]["last"])
    assert load(load_from=path) == {}
    assert load(rank=1, resume=True, load_from=path) == {}, "there was one process only"


def train_in_process(folder, rank):
    """Two steps, then a resumed run, which writes the state that its method was given."""
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    runner(folder, 2, name="first", ema=False).train()
    path = str(folder / "iter_2.pth")
    resumed = runner(folder, 2, name="resumed", ema=False, resume=True, load_from=path)
    resumed.optim_wrapper = resumed.build_optim_wrapper(resumed.optim_wrapper)
    resumed.load_or_resume()
    torch.save(resumed.model.distill.carried, folder / f"loaded_{rank}.pth")
    torch.distributed.destroy_process_group()


def test_each_process_gets_its_own_state_back(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train_in_process, args=(tmp_path, rank)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    saved = torch.load(tmp_path / "iter_2.pth", weights_only=True)["distill_resume_state"]
    loaded = [torch.load(tmp_path / f"loaded_{rank}.pth", weights_only=True) for rank in (0, 1)]
    assert not torch.equal(saved[0]["last"], saved[1]["last"])
    for rank in (0, 1):
        assert torch.equal(loaded[rank]["last"], saved[rank]["last"])


def test_model_without_method():
    made = SimpleNamespace(model=nn.Linear(1, 1), _resume=True)
    checkpoint = {"message_hub": {"runtime_info": {"iter": np.int64(3)}}}
    hook = SafeCheckpointHook(interval=1)
    hook.before_save_checkpoint(made, checkpoint)
    assert checkpoint == {"message_hub": {"runtime_info": {"iter": 3}}}
    weights = made.model.weight.clone()
    hook.after_load_checkpoint(made, {**checkpoint, "distill_resume_state": [{}]})
    assert torch.equal(made.model.weight, weights)


def hub(name):
    made = MessageHub.get_instance(name)
    for i in range(5):
        made.update_scalar("train/loss", 0.1 * i, count=i + 1)
    short = HistoryBuffer([1.5, 2.5, 3.5], [1, 2, 3], max_length=3)
    short.update(4.5, 4)
    made._log_scalars["short"] = short
    made._log_scalars["none"] = HistoryBuffer()
    made._resumed_keys.update({"short": True, "none": True})
    made.update_info("eta", np.float64(3.5))
    made.update_info("iter", np.int64(7))
    made.update_info("ok", np.bool_(True))
    made.update_info("curve", np.arange(3))
    made.update_info("nested", [{"a": (np.float32(0.5), "text", None)}])
    return made


def test_histories_and_numpy_values(tmp_path):
    made = SimpleNamespace(model=nn.Linear(1, 1), _resume=False)
    hook, source = SafeCheckpointHook(interval=1), hub("source")
    checkpoint = {"message_hub": source.state_dict(), "meta": {"seed": np.int64(3)}}
    hook.before_save_checkpoint(made, checkpoint)
    torch.save(checkpoint, tmp_path / "c.pth")
    loaded = torch.load(tmp_path / "c.pth", weights_only=True)
    assert type(loaded["meta"]["seed"]) is int
    hook.after_load_checkpoint(made, loaded)
    target = MessageHub.get_instance("target")
    target.load_state_dict(loaded["message_hub"])
    assert set(target.log_scalars) == set(source.log_scalars) == {"train/loss", "short", "none"}
    for name, before in source.log_scalars.items():
        after = target.get_scalar(name)
        assert isinstance(after, HistoryBuffer) and after.max_length == before.max_length
        for x, y in zip(before.data, after.data):
            assert np.array_equal(x, y) and x.dtype == y.dtype
    loss, short = target.get_scalar("train/loss"), target.get_scalar("short")
    assert loss.mean() == source.get_scalar("train/loss").mean() == pytest.approx(1 / 15)
    assert short.mean() == pytest.approx(10.5 / 9) and short.max_length == 3
    assert short.data[0].tolist() == [2.5, 3.5, 4.5]
    short.update(5.5)
    assert short.data[0].tolist() == [3.5, 4.5, 5.5]
    assert target.get_info("eta") == 3.5 and type(target.get_info("iter")) is int
    assert target.get_info("ok") is True and target.get_info("curve") == [0, 1, 2]
    assert target.get_info("nested") == [{"a": (0.5, "text", None)}]
    # What goes on running is not changed by the saving.
    assert isinstance(source.get_scalar("train/loss"), HistoryBuffer)


def test_schedulers_make_the_round_trip(tmp_path):
    def scheduler():
        optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
        return optimizer, MultiStepLR(optimizer, milestones=[2, 4, 4], by_epoch=False)

    made = SimpleNamespace(model=nn.Linear(1, 1), _resume=True)
    hook, (first, schedule) = SafeCheckpointHook(interval=1), scheduler()
    for _ in range(3):
        first.step()
        schedule.step()
    checkpoint = {"param_schedulers": [schedule.state_dict()], "message_hub": {}}
    hook.before_save_checkpoint(made, checkpoint)
    torch.save(checkpoint, tmp_path / "c.pth")
    loaded = torch.load(tmp_path / "c.pth", weights_only=True)
    hook.after_load_checkpoint(made, loaded)
    second, other = scheduler()
    second.load_state_dict(first.state_dict())
    other.load_state_dict(loaded["param_schedulers"][0])
    assert Counter(other.milestones) == schedule.milestones
    for expected in (0.001, 0.001):
        for item in (first, second, schedule, other):
            item.step()
        assert [first.param_groups[0]["lr"], second.param_groups[0]["lr"]] == pytest.approx(
            [expected, expected]
        )


def test_weights_of_plain_mmengine_checkpoint(tmp_path, restore_scope):
    made = runner(tmp_path, 2, "plain", hook="CheckpointHook", ema=False)
    made.train()
    path = str(tmp_path / "iter_2.pth")
    trained = {key: value.clone() for key, value in made.model.state_dict().items()}
    nn.init.zeros_(made.model.linear.weight)
    load_weights(made.model, path)
    assert all(torch.equal(made.model.state_dict()[key], value) for key, value in trained.items())
    history = read_checkpoint(path)["message_hub"]["log_scalars"]["train/loss"]
    assert isinstance(history, PickledObject) and type(history).__name__ == "HistoryBuffer"
    with pytest.raises(ValueError, match=r"iter_2.pth' is refused: it holds pickled"):
        read_checkpoint(path, allow_objects=False)


def test_resume_from_plain_mmengine_checkpoint(restore_scope):
    # Histories that are objects already are left as they are.
    checkpoint = {"message_hub": {"log_scalars": {"loss": HistoryBuffer([1.0], [1])}}}
    made = SimpleNamespace(model=nn.Linear(1, 1), _resume=True)
    SafeCheckpointHook(interval=1).after_load_checkpoint(made, checkpoint)
    assert checkpoint["message_hub"]["log_scalars"]["loss"].mean() == 1.0


def test_project_configs_use_the_safe_hook():
    cfg = Config.fromfile("configs/_base_/default_runtime.py")
    assert cfg.default_hooks.checkpoint.type == "SafeCheckpointHook"


# Checkpoints of earlier versions.


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
        # With this ratio, β is the only parameter of shape (1,).
        self.prompt = AdaptiveFeedbackPrompt(8, None, ratio=4)

    def forward(self, inputs):
        return self.prompt(self.student(inputs)[:, :, None, None])


def step(model, optimizer, seed):
    inputs = torch.randn(4, 8, generator=torch.Generator().manual_seed(seed))
    model(inputs).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def as_before(state):
    """Return β in the shape () of checkpoints of earlier versions."""
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
def test_old_optimizer_state(name):
    torch.manual_seed(0)
    model, other = Prompted(), Prompted()
    optimizer = OPTIMIZERS[name](model.parameters())
    with torch.no_grad():
        model.prompt.beta.fill_(0.3)
    step(model, optimizer, 0)
    checkpoint = {
        "state_dict": as_before(model.state_dict()),
        "optimizer": as_before(copy.deepcopy(optimizer.state_dict())),
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
