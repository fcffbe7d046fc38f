import json
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import CheckpointHook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.model import BaseModel
from mmengine.optim import MultiStepLR
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch import nn
from torch.utils.data import Dataset

from pat_mmdet.engine.hooks import SafeCheckpointHook, checkpoint_hook
from pat_mmdet.utils import load_weights, read_checkpoint
from pat_mmdet.utils.checkpoint import PickledObject


class Method(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.carried = {}

    def resume_state(self):
        return dict(self.carried)

    def load_resume_state(self, state):
        self.carried = state


class Toy(BaseModel):
    """Learns with dropout, and carries the last input on."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 1)
        self.distill = Method()

    def forward(self, inputs, mode="tensor"):
        inputs = torch.stack(inputs)
        if mode == "loss":
            self.distill.carried = {"last": inputs[0].detach() + self.distill.weight.detach()}
            loss = nn.functional.dropout(self.linear(inputs), 0.5).square().mean()
            return {"loss": loss + self.distill.weight.square().sum()}
        return [self.linear(inputs)]


class Noise(Dataset):
    """Samples made of random numbers."""

    def __init__(self):
        self.read = []

    def __getitem__(self, index):
        self.read.append(index)
        return dict(inputs=torch.tensor([index, np.random.rand(), float(torch.rand(()))]))

    def __len__(self):
        return 5


class Score(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(1)

    def compute_metrics(self, results):
        return {"score": np.float64(0.25)}


@pytest.fixture
def restore_scope():
    """Runners leave a default scope behind that has no detectors."""
    yield
    init_default_scope("mmdet")


def runner(
    folder, max_iters=6, name="toy", hook="SafeCheckpointHook", ema=True, epochs=None, **options
):
    train_cfg = dict(type="ResumableIterBasedTrainLoop", max_iters=max_iters, val_interval=2)
    if epochs is not None:
        train_cfg = dict(type="ResumableEpochBasedTrainLoop", max_epochs=epochs)
    hooks = [dict(type="EMAHook", momentum=0.1, update_buffers=True)] if ema else []
    loader = dict(
        dataset=Noise(),
        batch_size=2,
        num_workers=0,
        sampler=dict(type="DefaultSampler", shuffle=True),
    )
    torch.manual_seed(0)
    return Runner(
        Toy(),
        str(folder),
        train_dataloader=loader,
        val_dataloader=dict(loader, sampler=dict(type="DefaultSampler", shuffle=False)),
        train_cfg=train_cfg,
        val_cfg=dict(type="ValLoop"),
        val_evaluator=Evaluator(Score()),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.1, momentum=0.9)),
        param_scheduler=[dict(type="MultiStepLR", milestones=[3, 5], by_epoch=False)],
        default_hooks=dict(
            logger=dict(type="LoggerHook", interval=1),
            checkpoint=dict(
                type=hook,
                by_epoch=epochs is not None,
                interval=2 if epochs is None else 1,
                save_best="score",
                rule="greater",
            ),
        ),
        custom_hooks=hooks,
        log_processor=dict(by_epoch=epochs is not None),
        default_scope="mmengine",
        randomness=dict(seed=7),
        experiment_name=f"{name}_{folder.name}",
        **options,
    )


def history(made, name):
    return made.message_hub.get_scalar(name)


@pytest.fixture
def toy(tmp_path, restore_scope):
    """Unbroken training of the toy model: six steps, a checkpoint at each second one."""
    made = runner(tmp_path)
    made.train()
    return made


def test_checkpoints_of_a_training_are_plain_data(toy, tmp_path):
    assert isinstance(toy.message_hub.get_info("best_score"), np.generic)
    names = sorted(path.name for path in tmp_path.glob("*.pth"))
    assert names == ["best_score_iter_2.pth", "iter_2.pth", "iter_4.pth", "iter_6.pth"]
    for name in names:
        checkpoint = torch.load(tmp_path / name, weights_only=True)
        assert checkpoint["meta"]["iter"] == int(name[-5])
    best = checkpoint["message_hub"]["runtime_info"]["best_score"]
    assert type(best) is float and best == 0.25
    assert read_checkpoint(str(tmp_path / "iter_6.pth"))["meta"]["iter"] == 6


def test_resumed_training_equals_the_unbroken_one(toy, tmp_path):
    resumed = runner(tmp_path, name="resumed", resume=True, load_from=str(tmp_path / "iter_4.pth"))
    loaded = []
    resumed.model.distill.load_resume_state = loaded.append
    resumed.train()
    assert len(loaded) == 1 and list(loaded[0]) == ["last"]
    assert len(resumed.train_dataloader.dataset.read) == 3, "nothing is read again"
    for key, value in toy.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    for name in ("train/loss", "train/lr"):
        whole, again = history(toy, name), history(resumed, name)
        assert len(whole.data[0]) == 6
        assert np.array_equal(whole.data[0], again.data[0])
        assert np.array_equal(whole.data[1], again.data[1])
        assert whole.max_length == again.max_length and whole.mean() == again.mean()
    # The milestone at step 5 came after the resume.
    assert history(resumed, "train/lr").data[0] == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.001])
    first, second = (
        torch.load(tmp_path / "iter_6.pth", weights_only=True),
        torch.load(tmp_path / "iter_4.pth", weights_only=True),
    )
    assert first["distill_resume_state"][0]["last"].shape == (3,)
    assert not torch.equal(
        first["distill_resume_state"][0]["last"], second["distill_resume_state"][0]["last"]
    )


@pytest.mark.parametrize("epochs", [None, 3])
def test_a_finished_training_is_evaluated_again_when_resumed(epochs, tmp_path, restore_scope):
    """It may have been stopped in its last evaluation."""
    runner(tmp_path, epochs=epochs).train()
    checkpoint = str(tmp_path / ("iter_6.pth" if epochs is None else "epoch_3.pth"))
    again = runner(tmp_path, name="again", epochs=epochs, resume=True, load_from=checkpoint)
    before = {key: value.clone() for key, value in again.model.state_dict().items()}
    again.train()
    assert again.message_hub.get_scalar("val/score").data[0][-1] == 0.25
    assert again.train_dataloader.dataset.read == []
    entries = [
        json.loads(line)
        for file in (tmp_path / again.timestamp).glob("vis_data/*.json")
        for line in file.read_text().splitlines()
    ]
    assert any(entry.get("score") == 0.25 for entry in entries)
    trained = torch.load(checkpoint, weights_only=True)["ema_state_dict"]
    after = again.model.state_dict()
    assert all(torch.equal(trained[f"module.{key}"], value) for key, value in after.items())
    assert before.keys() == after.keys()


def test_training_by_epochs_resumes_exactly_too(tmp_path, restore_scope):
    whole = runner(tmp_path, name="epochs", epochs=3)
    whole.train()
    assert whole.iter == 9 and len(whole.train_dataloader.dataset.read) == 15
    orders = [whole.train_dataloader.dataset.read[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len({tuple(order) for order in orders}) > 1, "each epoch has its own order"
    checkpoint = str(tmp_path / "epoch_2.pth")
    resumed = runner(tmp_path, name="resumed", epochs=3, resume=True, load_from=checkpoint)
    resumed.train()
    assert resumed.train_dataloader.dataset.read == orders[2]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    first, again = (history(made, "train/loss").data[0] for made in (whole, resumed))
    assert len(first) == 9 and len(set(first)) > 4 and np.array_equal(first, again)


def test_the_method_gets_its_state_only_when_resuming(toy, tmp_path):
    def load(rank=0, **options):
        made = runner(tmp_path, 6, f"load_{rank}_{len(options)}", ema=False, **options)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint_hook, "get_rank", lambda: rank)
            made.load_or_resume()
        return made.model.distill.carried

    path = str(tmp_path / "iter_4.pth")
    saved = torch.load(path, weights_only=True)["distill_resume_state"]
    assert torch.equal(load(resume=True, load_from=path)["last"], saved[0]["last"])
    assert load(load_from=path) == {}
    assert load(rank=1, resume=True, load_from=path) == {}, "there was one process only"


def test_the_state_of_each_process_is_saved_and_given_back_to_it(tmp_path, monkeypatch):
    states = [{"a": torch.zeros(2)}, {"a": torch.ones(3)}]
    seen = []

    def gather(own):
        seen.append(own)
        return states

    monkeypatch.setattr(checkpoint_hook, "all_gather_object", gather)
    hook, method = SafeCheckpointHook(interval=1), Method()
    method.carried = {"a": torch.zeros(2, requires_grad=True).detach()}
    made = SimpleNamespace(model=SimpleNamespace(distill=method), _resume=True)
    checkpoint = {}
    monkeypatch.setattr(
        CheckpointHook,
        "_save_checkpoint_with_step",
        lambda self, runner, step, meta: self.before_save_checkpoint(runner, checkpoint),
    )
    hook._save_checkpoint_with_step(made, 1, {})
    assert seen == [method.carried]
    assert checkpoint["distill_resume_state"] is states
    other = {}
    hook.before_save_checkpoint(made, other)
    assert "distill_resume_state" not in other, "nothing is left for the next checkpoint"
    for rank, expected in ((0, states[0]), (1, states[1]), (2, {})):
        monkeypatch.setattr(checkpoint_hook, "get_rank", lambda rank=rank: rank)
        method.carried = {}
        hook.after_load_checkpoint(made, checkpoint)
        assert method.carried is expected or method.carried == expected


def test_a_model_without_method_is_saved_too(tmp_path):
    made = SimpleNamespace(model=nn.Linear(1, 1), _resume=True)
    checkpoint = {"message_hub": {}}
    hook = SafeCheckpointHook(interval=1)
    hook.before_save_checkpoint(made, checkpoint)
    hook.after_load_checkpoint(made, {**checkpoint, "distill_resume_state": [{}]})


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


def test_histories_and_numpy_values_make_the_round_trip(tmp_path):
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


def test_plain_mmengine_checkpoint_loads_its_weights(tmp_path, restore_scope):
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


def test_a_resumed_plain_mmengine_checkpoint_would_keep_its_histories(restore_scope):
    # Histories that are objects already are left as they are.
    checkpoint = {"message_hub": {"log_scalars": {"loss": HistoryBuffer([1.0], [1])}}}
    made = SimpleNamespace(model=nn.Linear(1, 1), _resume=True)
    SafeCheckpointHook(interval=1).after_load_checkpoint(made, checkpoint)
    assert checkpoint["message_hub"]["log_scalars"]["loss"].mean() == 1.0


def test_project_configs_use_the_safe_hook():
    cfg = Config.fromfile("configs/_base_/default_runtime.py")
    assert cfg.default_hooks.checkpoint.type == "SafeCheckpointHook"
