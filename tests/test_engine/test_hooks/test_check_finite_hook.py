"""Numbers that are not finite: what stops, what is skipped, what is saved."""

import math
import multiprocessing
import time
from types import SimpleNamespace

import pytest
import torch
from helpers import toy as toys
from helpers.detectors import PAIR
from helpers.synchronisation import NoSynchronisation
from helpers.tools import ROOT
from mmengine.hooks import Hook
from mmengine.optim import AmpOptimWrapper, OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from mmengine.runner import Runner
from torch import nn

from pat_mmdet.engine.hooks import CheckFiniteHook, check_finite_hook
from pat_mmdet.utils import load_config
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.finite import find_non_finite

NAN, INF = math.nan, math.inf


class Toy(toys.Toy):
    """Names its losses, normalises its inputs in a buffer, and gets the files of its images."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3)
        self.factor = 1.0
        self.gradient_factor = 1.0

    def forward(self, inputs, data_samples=None, mode="tensor"):
        inputs = torch.stack(inputs)
        losses = super().forward(list(self.norm(inputs)), mode)
        if mode != "loss":
            return losses
        loss = losses["loss"]
        loss.register_hook(lambda gradient: gradient * self.gradient_factor)
        return {"loss_task": [loss], "loss_extra": self.factor * loss.detach(), "acc": loss / 0}


class Images(toys.Noise):
    def __getitem__(self, index):
        sample = SimpleNamespace(img_path=f"{index}.png", sample_idx=index)
        return dict(super().__getitem__(index), data_samples=sample)

    def __len__(self):
        return 8  # whole batches, as a batch of one cannot be normalised


class At(Hook):
    """Does something before an iteration, counted from 1."""

    priority = "VERY_HIGH"

    def __init__(self, iterations, do):
        self.iterations, self.do = iterations, do

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter + 1 in self.iterations:
            self.do(runner.model, data_batch)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.model.factor = runner.model.gradient_factor = 1.0


def break_image(model, batch):
    batch["inputs"][0][1] = NAN


def break_loss(model, batch):
    model.factor = INF


def break_gradient(model, batch):
    model.gradient_factor = NAN


def break_weight(model, batch):
    nn.init.constant_(model.linear.weight, NAN)


def break_unused_buffer(model, batch):
    model.norm.running_mean[0] = INF


def make(folder, do=None, at=(3,), wrapper=None, name="finite", **options):
    """A runner with the hook, and something wrong before some iterations."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toys, "Toy", Toy)
        patch.setattr(toys, "Noise", Images)
        made = toys.runner(folder, name=name, ema=False)
    if wrapper is not None:
        made.optim_wrapper = wrapper
    made.register_hook(CheckFiniteHook(**options))
    if do is not None:
        made.register_hook(At(at, do))
    return made


def checkpoints(folder):
    """The names of the checkpoints, all of which must be finite."""
    files = sorted(folder.glob("*.pth"))
    for file in files:
        assert not find_non_finite(torch.load(file, weights_only=True)["state_dict"]), file
    return [file.name for file in files if not file.name.startswith("best")]


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (break_image, r"iteration 3: loss_task=nan, loss_extra=nan \(images: \d.png, \d.png\);"),
        (break_loss, r"iteration 3: loss_extra=inf \(images: \d.png, \d.png\);"),
        (break_gradient, r"iteration 3: grad_norm=nan \(images: \d.png, \d.png\);"),
        (break_weight, r"iteration 3: loss_task=nan, loss_extra=nan \(.*\);"),
        (break_unused_buffer, r"the model has 1 tensors .* \(norm.running_mean\);"),
    ],
)
def test_stops_and_keeps_the_last_good_checkpoint(do, message, tmp_path, restore_scope):
    made = make(tmp_path, do)
    expected = f"^error: .*{message} training stops.*iter_2.pth stays"
    with pytest.raises(SystemExit, match=expected), clear_errors():
        made.train()
    assert checkpoints(tmp_path) == ["iter_2.pth"]
    assert (tmp_path / "last_checkpoint").read_text().endswith("iter_2.pth")


@pytest.mark.parametrize("max_norm", [1.0, None])
def test_non_finite_last_step(max_norm, tmp_path, restore_scope):
    wrapper = dict(optimizer=dict(type="SGD", lr=1e-3))
    if max_norm is not None:
        wrapper["clip_grad"] = dict(max_norm=max_norm)
    made = make(tmp_path, wrapper=wrapper)

    def raise_rate(model, batch):
        for group in made.optim_wrapper.param_groups:
            group["lr"] = INF

    made.register_hook(At([6], raise_rate))
    with pytest.raises(FloatingPointError, match=r"the model has \d tensors .*iter_4.pth stays"):
        made.train()
    assert checkpoints(tmp_path) == ["iter_2.pth", "iter_4.pth"]


def test_overflowing_gradient_norm(tmp_path, restore_scope):
    def raise_gradient(model, batch):
        model.gradient_factor = 1e30

    wrapper = dict(optimizer=dict(type="SGD", lr=0.1), clip_grad=dict(max_norm=1.0))
    made = make(tmp_path, raise_gradient, wrapper=wrapper)
    with pytest.raises(FloatingPointError, match=r"iteration 3: grad_norm=inf"):
        made.train()


def test_weights_are_checked_before_the_first_step(tmp_path, restore_scope):
    made = make(tmp_path)
    made._init_model_weights = lambda: nn.init.constant_(made.model.linear.bias, NAN)
    with pytest.raises(FloatingPointError, match=r"to be trained has 1 tensors .*\(linear.bias\)"):
        made.train()


def test_checkpoint_of_another_run_is_not_named_as_the_last(tmp_path, restore_scope):
    make(tmp_path / "first").train()
    source = tmp_path / "first" / "iter_4.pth"
    made = make(tmp_path / "second", break_gradient, at=[5])
    made._load_from, made._resume = str(source), True
    with pytest.raises(FloatingPointError, match=r"iteration 5: .* and no checkpoint was written"):
        made.train()
    checkpoint = torch.load(source, weights_only=True)
    checkpoint["state_dict"]["linear.bias"][0] = NAN
    torch.save(checkpoint, source)
    made = make(tmp_path / "third")
    made._load_from, made._resume = str(source), True
    with pytest.raises(FloatingPointError, match=r"bias\) from '.*first/iter_4.pth'; use another"):
        made.train()


def test_what_others_save_is_checked(tmp_path, restore_scope):
    made = make(tmp_path)
    made.train()
    break_weight(made.model, None)
    with pytest.raises(FloatingPointError, match=r"would have 1 tensors .*state_dict.linear.weigh"):
        made.save_checkpoint(str(tmp_path), "mine.pth")
    assert checkpoints(tmp_path) == ["iter_2.pth", "iter_4.pth", "iter_6.pth"]


@pytest.fixture
def on_a_device(monkeypatch):
    """Values are read as if each reading waited for a device."""
    monkeypatch.setattr(check_finite_hook, "_is_free", lambda model: False)


@pytest.mark.parametrize(("interval", "steps"), [(1, 1), (50, 2)])
def test_reading_interval(interval, steps, on_a_device, tmp_path, restore_scope):
    made = make(tmp_path, break_gradient, [1], interval=interval)
    with pytest.raises(FloatingPointError, match=r"iteration 1: grad_norm=nan .*no checkpoint was"):
        made.train()
    assert made.iter + 1 == steps and checkpoints(tmp_path) == []


def raise_error(model, batch):
    raise ValueError("matrix contains invalid numeric entries")


@pytest.mark.parametrize(
    ("do", "error", "message"),
    [
        (break_loss, FloatingPointError, "iteration 1: loss_extra=inf"),
        (break_weight, FloatingPointError, r"the model has 1 tensors .*\(linear.weight\)"),
        (None, ValueError, "invalid numeric entries"),
    ],
)
def test_errors_that_follow(do, error, message, on_a_device, tmp_path, restore_scope):
    made = make(tmp_path, do, [1 if do is break_loss else 2])
    made.register_hook(At([2], raise_error))
    with pytest.raises(error, match=message):
        made.train()


def test_no_step_waits_for_the_device(on_a_device, tmp_path, restore_scope):
    made = make(tmp_path)
    hook = next(hook for hook in made.hooks if isinstance(hook, CheckFiniteHook))
    guarded = []

    def guard(function):
        def call(*args, **kwargs):
            guarded.append(function.__name__)
            with NoSynchronisation():
                return function(*args, **kwargs)

        return call

    for name in ("before_train_iter", "after_train_iter", "_keep_losses", "_before_update"):
        setattr(hook, name, guard(getattr(hook, name)))
    made.train()
    assert all(guarded.count(name) >= 6 for name in ("after_train_iter", "_before_update"))


@pytest.mark.parametrize("do", [break_image, break_loss, break_gradient])
def test_a_skipped_step_changes_nothing(do, tmp_path, restore_scope):
    made = make(tmp_path, do, [3], max_skips=1)
    states = []

    def keep(model, batch):
        state = {**model.state_dict(), **model.distill.resume_state()}
        momentum = made.optim_wrapper.optimizer.state_dict()["state"]
        state.update({str(key): momentum[key]["momentum_buffer"] for key in momentum})
        states.append({key: value.clone() for key, value in state.items()})

    made.register_hook(At(range(1, 7), keep))
    made.train()
    before, after, later = states[2:5]
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert not torch.equal(after["linear.weight"], later["linear.weight"])
    assert len(made.message_hub.get_scalar("train/loss_task").data[0]) == 5
    assert checkpoints(tmp_path) == ["iter_2.pth", "iter_4.pth", "iter_6.pth"]


def test_more_bad_steps_than_may_be_skipped_stop(tmp_path, restore_scope):
    made = make(tmp_path, break_image, [3, 5, 6], max_skips=2)
    with pytest.raises(FloatingPointError, match=r"iteration 6: .*, after 2 skipped steps; train"):
        made.train()
    assert checkpoints(tmp_path) == ["iter_2.pth", "iter_4.pth"]


@OPTIM_WRAPPERS.register_module()
class ScaledOptimWrapper(AmpOptimWrapper):
    """Mixed precision's scaling of the loss, on the CPU."""

    def __init__(self, init_scale, **kwargs):
        OptimWrapper.__init__(self, **kwargs)
        self.loss_scaler = torch.amp.GradScaler("cpu", init_scale=init_scale)
        self._scale_update_param, self.cast_dtype = None, torch.bfloat16


def scaled(init_scale, **kwargs):
    return dict(
        type="ScaledOptimWrapper",
        init_scale=init_scale,
        optimizer=dict(type="SGD", lr=0.1),
        **kwargs,
    )


@pytest.mark.parametrize("clip", [dict(), dict(clip_grad=dict(max_norm=1.0))])
def test_overflow_in_mixed_precision_is_no_error(clip, tmp_path, restore_scope):
    made = make(tmp_path, wrapper=scaled(2.0**127, **clip))
    made.train()
    assert made.optim_wrapper.loss_scaler.get_scale() < 2.0**127, "a step must have overflown"
    assert checkpoints(tmp_path) == ["iter_2.pth", "iter_4.pth", "iter_6.pth"]


def test_overflow_at_every_scale_stops(tmp_path, restore_scope, monkeypatch):
    monkeypatch.setattr(check_finite_hook, "_MAX_OVERFLOWS", 4)
    made = make(tmp_path, break_gradient, range(1, 7), wrapper=scaled(1.0))
    with pytest.raises(FloatingPointError, match="of the last 4 steps overflow at every loss sc"):
        made.train()


def test_non_finite_loss_in_mixed_precision(tmp_path, restore_scope):
    made = make(tmp_path, break_image, wrapper=scaled(1.0))
    with pytest.raises(FloatingPointError, match=r"iteration 3: loss_task=nan"):
        made.train()


def train_in_process(folder, rank):
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    made = make(folder, break_image if rank == 1 else None, [1], name=f"rank_{rank}")
    try:
        made.train()
    except FloatingPointError as error:
        (folder / f"error_{rank}").write_text(str(error))
    torch.distributed.destroy_process_group()


def test_image_names_of_all_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=train_in_process, args=(tmp_path, rank)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    first, second = ((tmp_path / f"error_{rank}").read_text() for rank in (0, 1))
    assert first == second and "iteration 1: loss_task=nan" in first
    assert checkpoints(tmp_path) == []


def test_arguments_out_of_range():
    for options in (dict(interval=0), dict(max_skips=-1)):
        with pytest.raises(ValueError, match="at least"):
            CheckFiniteHook(**options)


@pytest.mark.full
@pytest.mark.parametrize("clip_grad", [dict(max_norm=5.0), None])
def test_cost(clip_grad, digits, tmp_path):
    """Share of the hook in the CPU time of a training step of the digits pair."""
    options = {
        "data_root": f"{digits}/",
        "train_cfg.max_iters": 25,
        "train_cfg.val_interval": 100,
        "optim_wrapper.clip_grad": clip_grad,
        "model.teacher_checkpoint": None,
    }
    cfg = load_config(str(ROOT / PAIR), options)
    cfg.work_dir = str(tmp_path)
    cfg.experiment_name = cfg.visualizer.name = tmp_path.name
    made = Runner.from_cfg(cfg)
    hook = next(hook for hook in made.hooks if isinstance(hook, CheckFiniteHook))
    times = {}

    def timed(owner, name):
        function = getattr(owner, name)

        def call(*args, **kwargs):
            start = time.process_time()
            result = function(*args, **kwargs)
            times.setdefault(name, []).append(time.process_time() - start)
            return result

        setattr(owner, name, call)

    for name in ("before_train_iter", "after_train_iter", "_keep_losses", "_before_update"):
        timed(hook, name)
    timed(made.train_loop, "run_iter")
    made.train()
    seconds = {name: sum(values[5:]) for name, values in times.items()}  # without warming up
    step = seconds.pop("run_iter")
    share = sum(seconds.values()) / step
    print(f"{share:.2%} of {step / 20 * 1e3:.0f} ms with clip_grad={clip_grad}")
    assert share < 0.03
