"""Checkpoints that load safely: what is saved, what is restored, those of earlier versions."""

import copy
import errno
import multiprocessing
import os
import shutil
import signal
from collections import Counter, OrderedDict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers.toy import Score, history, runner
from mmengine.config import Config
from mmengine.fileio import LocalBackend
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.optim import MultiStepLR, OptimWrapper
from mmengine.registry import HOOKS
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

from pat_mmdet.engine.hooks import SafeCheckpointHook, checkpoint_hook
from pat_mmdet.models.layers import AdaptiveFeedbackPrompt
from pat_mmdet.models.methods import KD
from pat_mmdet.utils import load_weights, read_checkpoint
from pat_mmdet.utils.checkpoint import PickledObject
from pat_mmdet.utils.errors import clear_errors


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


def run_processes(function, folder):
    """Run a function of a folder and a rank in two processes."""
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=function, args=(folder, rank)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]


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
    run_processes(train_in_process, tmp_path)
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


# Nothing in a checkpoint is run.


RUN = "import pathlib; pathlib.Path({path!r}).touch()"


@pytest.fixture
def crafted(toy, tmp_path):
    """A checkpoint of plain data that MMEngine's Runner would execute."""
    checkpoint = torch.load(tmp_path / "iter_6.pth", weights_only=True)
    checkpoint["meta"]["config"] = RUN.format(path=str(tmp_path / "ran"))
    torch.save(checkpoint, tmp_path / "iter_6.pth")
    return tmp_path / "iter_6.pth"


@pytest.mark.parametrize("hook", ["SafeCheckpointHook", "CheckpointHook"])
@pytest.mark.parametrize("by", ["resume", "last_checkpoint"])
def test_config_in_a_checkpoint_is_not_executed(hook, by, crafted, tmp_path):
    path = str(crafted) if by == "resume" else None
    made = runner(tmp_path, name="crafted", resume=True, load_from=path, hook=hook, ema=False)
    made.optim_wrapper = made.build_optim_wrapper(made.optim_wrapper)
    made.load_or_resume()
    assert made.iter == 6 and not (tmp_path / "ran").exists()


def test_config_is_not_hidden_by_methods_of_the_file(crafted, tmp_path):
    checkpoint = torch.load(crafted, weights_only=True)
    checkpoint["meta"] = OrderedDict(checkpoint["meta"])
    checkpoint["meta"].pop = Foreign  # torch restores attributes; read as a placeholder
    torch.save(checkpoint, crafted)
    settings = dict(resume=True, load_from=str(crafted), hook="CheckpointHook", ema=False)
    made = runner(tmp_path, name="crafted", **settings)
    made.optim_wrapper = made.build_optim_wrapper(made.optim_wrapper)
    made.load_or_resume()
    assert made.iter == 6 and not (tmp_path / "ran").exists()


class Foreign:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return exec, (RUN.format(path=str(self.path)),)


@pytest.mark.parametrize("entry", ["load_from", "resume", "last_checkpoint", "init_cfg"])
@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_objects_are_not_run(entry, legacy, toy, tmp_path):
    path = tmp_path / "iter_6.pth"
    content = {"state_dict": Foreign(tmp_path / "ran"), "meta": {}}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    options = dict(resume=entry != "load_from")
    options["load_from"] = None if entry == "last_checkpoint" else str(path)
    if entry == "init_cfg":
        model = Prompted(init_cfg=dict(type="Pretrained", checkpoint=str(path)))
        with pytest.raises(ValueError, match=r"refused|instead of weights"):
            model.init_weights()
    elif entry == "last_checkpoint":
        made = runner(tmp_path, name=entry, **options)
        made.train()  # from the one before
        assert made.iter == 6
    else:
        with pytest.raises(ValueError, match=r"refused|instead of weights"):
            runner(tmp_path, name=entry, **options).train()
    assert not (tmp_path / "ran").exists()


# Kills, full disks and copies.


def whole(folder):
    """The checkpoints of a folder; each of them is whole."""
    for path in folder.glob("*.pth"):
        read_checkpoint(str(path))
    return sorted(path.name for path in folder.glob("*.pth"))


class Killed(BaseException):
    pass


@pytest.fixture
def improving(monkeypatch):
    """Each evaluation is the best so far."""

    def score(self, results):
        return {"score": float(MessageHub.get_current_instance().get_info("iter"))}

    monkeypatch.setattr(Score, "compute_metrics", score)


@pytest.mark.parametrize("epochs", [None, 3])
@pytest.mark.parametrize("step", ["write", "rename", "remove"])
def test_kill_in_a_write(step, epochs, tmp_path, restore_scope, improving, monkeypatch):
    """Killed in the first write, in the second of the resumed run, and so on."""

    def train(folder, name):
        options = dict(epochs=epochs, ema=False, checkpoint=dict(max_keep_ckpts=1))
        made = runner(tmp_path / folder, name=name, resume=True, **options)
        made.train()
        return made.model.state_dict()

    unbroken = train("unbroken", "unbroken")
    owner, name = dict(
        write=(Path, "write_bytes"), rename=(os, "replace"), remove=(LocalBackend, "remove")
    )[step]
    original, calls, kills = getattr(owner, name), [], 0

    def kill(*args):
        if ".pth" in "".join(map(str, args[:2])):
            calls.append(args)
            if len(calls) == kills + 1:
                raise Killed
        return original(*args)

    monkeypatch.setattr(owner, name, kill)
    while kills < 20:
        calls.clear()
        try:
            killed = train("killed", f"{step}_{kills}")
            break
        except Killed:
            kills += 1
            saved = whole(tmp_path / "killed")
            # Only the first write of all leaves nothing, the one after an evaluation no best.
            assert len(saved) >= min(kills - 1, 2)
    assert 1 < kills < 20
    assert all(torch.equal(killed[key], value) for key, value in unbroken.items())
    # A kill between the writes of the best and of the last checkpoint leaves an earlier best one.
    left = whole(tmp_path / "killed")
    assert set(left) >= set(whole(tmp_path / "unbroken"))
    assert len([name for name in left if not name.startswith("best")]) == 1


def test_leftovers_of_a_kill_are_removed(toy, tmp_path):
    part = tmp_path / ".iter_8.pth.123.tmp"
    part.write_bytes(b"half")
    again = runner(tmp_path, name="again", resume=True)
    again.train()
    assert not part.exists() and again.iter == 6


def test_full_disk(tmp_path, restore_scope, monkeypatch):
    write = Path.write_bytes

    def fill(path, content):
        if "iter_4" in path.name:
            write(path, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(path, content)

    with monkeypatch.context() as patch, pytest.raises(SystemExit) as stop, clear_errors():
        patch.setattr(Path, "write_bytes", fill)
        runner(tmp_path, checkpoint=dict(max_keep_ckpts=1)).train()
    path = str(tmp_path / "iter_4.pth")
    assert stop.value.code.startswith(f"error: no space left to write {path!r}; free some")
    assert whole(tmp_path) == ["best_score_iter_2.pth", "iter_2.pth"]
    again = runner(tmp_path, name="again", checkpoint=dict(max_keep_ckpts=1), resume=True)
    again.train()
    assert again.iter == 6 and whole(tmp_path) == ["best_score_iter_2.pth", "iter_6.pth"]


def test_copied_work_dir(tmp_path, restore_scope, improving):
    first, copy = tmp_path / "first", tmp_path / "copy"
    runner(first, 4, name="first").train()
    shutil.copytree(first, copy)
    before = whole(first)
    assert before == ["best_score_iter_4.pth", "iter_2.pth", "iter_4.pth"]
    runner(copy, 6, name="copy", resume=True).train()
    assert whole(first) == before
    assert whole(copy) == ["best_score_iter_6.pth", "iter_2.pth", "iter_4.pth", "iter_6.pth"]


# Checkpoints that do not fit.


def test_resume_from_weights_alone(toy, tmp_path):
    path = str(tmp_path / "best_score_iter_2.pth")
    with pytest.raises(ValueError, match=r"weights alone.*leave out --resume and give --cfg-opt"):
        runner(tmp_path, name="best", resume=True, load_from=path).train()
    runner(tmp_path / "new", 2, name="new", load_from=path).train()


def lose_weight(checkpoint):
    del checkpoint["state_dict"]["linear.weight"]


def lose_group(checkpoint):
    checkpoint["optimizer"]["param_groups"][0]["params"].pop()
    checkpoint["training_settings"]["model.method.type"] = "KD"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lose_weight,
            r"1 of \d+ weights are missing .* \(linear.weight, ...\), the same parameters",
        ),
        (
            lose_group,
            r"other parameters are optimised; changed: model.method.type KD -> not set. G",
        ),
    ],
)
def test_resume_from_another_model(change, message, toy, tmp_path):
    path = tmp_path / "iter_4.pth"
    checkpoint = torch.load(path, weights_only=True)
    change(checkpoint)
    torch.save(checkpoint, path)
    with pytest.raises(ValueError, match=message) as error:
        runner(tmp_path, name=change.__name__, resume=True, load_from=str(path)).train()
    assert "\n" not in str(error.value)


def test_resume_with_other_settings(tmp_path, restore_scope, capsys):
    def train(batch_size, **options):
        cfg = dict(train_dataloader=dict(batch_size=batch_size), optim_wrapper=dict(lr=0.1))
        made = runner(tmp_path, 2, name=f"batch_{batch_size}", cfg=Config(cfg), **options)
        made.train()

    train(2)
    assert "other settings" not in capsys.readouterr().out
    train(4, resume=True)
    line = "resumed with other settings: train_dataloader.batch_size 2 -> 4 (learning rates and"
    assert line in capsys.readouterr().out


def test_finished_training_says_so(tmp_path, restore_scope, capsys):
    runner(tmp_path, 2, name="first").train()
    assert "nothing is left to train" not in capsys.readouterr().out
    runner(tmp_path, 2, name="again", resume=True).train()
    line = "nothing is left to train: the checkpoint is of iteration 2 and the training ends at 2"
    assert line in capsys.readouterr().out


# SIGTERM.


@HOOKS.register_module()
class Terminate(Hook):
    """Send SIGTERM to this process at a step, or in the evaluation after it."""

    priority = "VERY_HIGH"

    def __init__(self, step, where="before_train_iter"):
        setattr(self, where, lambda runner, *_, **__: self.send(runner, step))

    @staticmethod
    def send(runner, step):
        if runner.iter == step:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize(
    ("epochs", "where", "step", "saved"),
    [
        (None, "before_train_iter", 2, "iter_3"),
        (None, "before_train_iter", 3, "iter_4"),
        (None, "before_val_iter", 4, "iter_4"),
        (3, "before_train_iter", 0, "epoch_0_iter_1"),
        (3, "before_train_iter", 4, "epoch_1_iter_5"),
        (3, "before_train_iter", 5, "epoch_1_iter_6"),
        (3, "before_val_iter", 6, "epoch_2"),
    ],
)
def test_sigterm_saves(epochs, where, step, saved, tmp_path, restore_scope):
    before = signal.getsignal(signal.SIGTERM)
    unbroken = runner(tmp_path / "unbroken", name="unbroken", epochs=epochs)
    unbroken.train()
    stopped = runner(
        tmp_path / "stopped", name="stopped", epochs=epochs,
        hooks=[dict(type=Terminate, step=step, where=where)],
    )  # fmt: skip
    with pytest.raises(SystemExit) as stop:
        stopped.train()
    assert stop.value.code == 143 and signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "stopped/last_checkpoint").read_text().endswith(f"/{saved}.pth")
    resumed = runner(tmp_path / "stopped", name="resumed", epochs=epochs, resume=True)
    resumed.train()
    assert resumed.iter == unbroken.iter
    first, second = (
        torch.load(f"{made.work_dir}/{'iter_6' if epochs is None else 'epoch_3'}.pth")
        for made in (unbroken, resumed)
    )
    for part in ("state_dict", "ema_state_dict"):
        assert all(torch.equal(first[part][key], value) for key, value in second[part].items())
    losses = [history(made, "train/loss").data[0] for made in (unbroken, resumed)]
    assert np.array_equal(*losses)


def stop_in_process(folder, rank):
    """Two processes get SIGTERM at different steps, then go on."""
    os.environ["LOCAL_RANK"] = str(rank)
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    for name, hooks in (("stopped", [dict(type=Terminate, step=rank)]), ("resumed", [])):
        made = runner(
            folder, 8, name=name, ema=False, hooks=hooks, resume=name == "resumed",
            cfg=Config(dict(model_wrapper_cfg=dict(device_ids=None))), launcher="pytorch",
        )  # fmt: skip
        try:
            made.train()
        except SystemExit as stop:
            (folder / f"stopped_{rank}").write_text(f"{stop.code} {made.iter + 1}")
    (folder / f"resumed_{rank}").write_text(str(made.iter))
    torch.distributed.destroy_process_group()


def test_sigterm_to_two_processes(tmp_path):
    run_processes(stop_in_process, tmp_path)
    stopped = [(tmp_path / f"stopped_{rank}").read_text() for rank in (0, 1)]
    assert stopped[0] == stopped[1] and stopped[0].startswith("143 ")
    step = int(stopped[0].split()[1])
    assert step < 6 and (tmp_path / f"iter_{step}.pth").is_file()
    assert [(tmp_path / f"resumed_{rank}").read_text() for rank in (0, 1)] == ["8", "8"]


# Checkpoints of earlier versions.


OPTIMIZERS = {
    "AdamW": lambda params: torch.optim.AdamW(params, lr=0.1),
    "SGD": lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9),
    "plain SGD": lambda params: torch.optim.SGD(params, lr=0.1),
}


class Prompted(BaseModel):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
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
