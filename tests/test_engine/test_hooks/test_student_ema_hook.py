import copy

import pytest
import torch
from helpers.classifiers import SIZE, build, config, distiller, raw_batch
from mmengine.evaluator import BaseMetric, Evaluator
from mmengine.hooks import Hook
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from torch.utils.data import Dataset

from pat_mmdet.engine.hooks import StudentEMAHook

MOMENTUM = 0.2
# One of each library, alone and with a teacher; batch norm is what EMA has buffers for.
MODELS = {
    "timm": config("resnet18"),
    "mmpretrain": config("mm resnet"),
    "distilled timm": distiller("resnet18", "deit_tiny_patch16_224", "PAT"),
    "distilled mmpretrain": distiller("mm resnet", "deit_tiny_patch16_224", "CRD", num_data=30),
}


class Pictures(Dataset):
    """Eight random images with labels."""

    def __init__(self):
        data = raw_batch(count=8, size=SIZE)
        self.items = [
            dict(inputs=image, data_samples=sample)
            for image, sample in zip(data["inputs"], data["data_samples"])
        ]

    def __getitem__(self, index):
        return copy.deepcopy(self.items[index])

    def __len__(self):
        return len(self.items)


class Count(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.extend(1 for _ in data_samples)

    def compute_metrics(self, results):
        return {"count": len(results)}


class Watch(Hook):
    """Keeps the student's weights: in training after each step, and as they are validated."""

    priority = "VERY_LOW"

    def __init__(self):
        self.trained, self.tested, self.restored = [], [], []

    def after_train_iter(self, runner, *args, **kwargs):
        self.trained.append(weights(runner))

    def before_val_iter(self, runner, *args, **kwargs):
        self.tested.append(weights(runner))

    def after_val_epoch(self, runner, metrics=None):
        self.restored.append(weights(runner))

    def before_test_iter(self, runner, *args, **kwargs):
        self.tested.append(weights(runner))


def weights(runner):
    student = getattr(runner.model, "student", runner.model)
    return {key: value.clone() for key, value in student.state_dict().items()}


def runner(folder, cfg, name="ema", hook=(), epochs=2, **options):
    """A training of two steps an epoch, with the hook that watches it."""
    watch = Watch()
    loader = dict(
        dataset=Pictures(),
        batch_size=4,
        num_workers=0,
        sampler=dict(type="DefaultSampler", shuffle=True),
    )
    made = Runner(
        build(cfg),
        str(folder),
        train_dataloader=loader,
        val_dataloader=dict(loader, batch_size=8, sampler=dict(type="DefaultSampler")),
        test_dataloader=dict(loader, batch_size=8, sampler=dict(type="DefaultSampler")),
        train_cfg=dict(type="ResumableEpochBasedTrainLoop", max_epochs=epochs),
        val_cfg=dict(type="ValLoop"),
        test_cfg=dict(type="TestLoop"),
        val_evaluator=Evaluator(Count()),
        test_evaluator=Evaluator(Count()),
        optim_wrapper=dict(optimizer=dict(type="SGD", lr=0.05, momentum=0.9)),
        default_hooks=dict(checkpoint=dict(type="SafeCheckpointHook", interval=1)),
        custom_hooks=[
            dict(
                type="StudentEMAHook",
                **{"momentum": MOMENTUM, "update_buffers": True, **dict(hook)},
            ),
            watch,
        ],
        default_scope="mmpretrain",
        randomness=dict(seed=7),
        experiment_name=f"{name}_{folder.name}",
        **options,
    )
    return made, watch


@pytest.fixture(autouse=True)
def restore_scope():
    yield
    init_default_scope("mmdet")


def average(trained, begin=0):
    """The average of weights by hand, with that of the buffers; integers are those of the first."""
    mean = {key: value.clone() for key, value in trained[begin].items()}
    for state in trained[begin + 1 :]:
        for key, value in state.items():
            if value.is_floating_point():
                mean[key] = (1 - MOMENTUM) * mean[key] + MOMENTUM * value
    return mean


def assert_close(found, expected):
    assert set(expected) <= set(found)
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=1e-5, atol=1e-6, msg=key)


def read(path):
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module", params=MODELS)
def training(request, tmp_path_factory):
    """Two epochs of each model: its runner, what was watched, and its checkpoints."""
    folder = tmp_path_factory.mktemp("ema")
    made, watch = runner(folder, MODELS[request.param], request.param)
    made.train()
    checkpoints = [read(folder / f"epoch_{i}.pth") for i in (1, 2)]
    return made, watch, checkpoints, folder, MODELS[request.param]


def test_checkpoint_has_average_and_weights(training):
    made, watch, checkpoints, *_ = training
    assert len(watch.trained) == 4
    for epoch, checkpoint in enumerate(checkpoints, start=1):
        state, kept = checkpoint["state_dict"], dict(checkpoint["ema_state_dict"])
        trained = watch.trained[: 2 * epoch]
        assert_close(state, average(trained))
        assert int(kept.pop("steps")) == 2 * epoch
        assert {key[len("module.") :] for key in kept} == set(trained[-1])
        assert all(torch.equal(kept[f"module.{key}"], trained[-1][key]) for key in trained[-1])
    plain = getattr(made.model, "student", made.model).state_dict()
    rest = set(state) - set(plain)
    assert all(key.startswith("distill.") for key in rest)
    assert bool(rest) == hasattr(made.model, "distill")


def test_layers_of_the_method_are_not_averaged(training):
    made, _, checkpoints, *_ = training
    if not hasattr(made.model, "distill"):
        return
    state = checkpoints[-1]["state_dict"]
    for key, value in made.model.distill.state_dict().items():
        assert torch.equal(state[f"distill.{key}"], value), key
    hook = next(hook for hook in made.hooks if isinstance(hook, StudentEMAHook))
    copied = {id(param) for param in hook.ema_model.parameters()}
    students = list(made.model.student.parameters())
    assert len(copied) == len(students) and not copied & {id(param) for param in students}


def test_average_is_validated(training):
    _, watch, *_ = training
    assert len(watch.tested) == len(watch.restored) == 2
    for epoch, (tested, after) in enumerate(zip(watch.tested, watch.restored), start=1):
        assert_close(tested, average(watch.trained[: 2 * epoch]))
        assert all(
            torch.equal(after[key], value) for key, value in watch.trained[2 * epoch - 1].items()
        )


def test_resumed_training_is_exact(training, tmp_path):
    _, watch, checkpoints, folder, cfg = training
    start = str(folder / "epoch_1.pth")
    again, seen = runner(tmp_path, cfg, "resumed", resume=True, load_from=start)
    again.train()
    assert len(seen.trained) == 2
    for first, second in zip(watch.trained[2:], seen.trained):
        assert all(torch.equal(first[key], value) for key, value in second.items())
    last = read(tmp_path / "epoch_2.pth")
    for part in ("state_dict", "ema_state_dict"):
        assert last[part].keys() == checkpoints[1][part].keys()
        for key, value in checkpoints[1][part].items():
            assert torch.equal(last[part][key], value), key
    assert all(torch.equal(seen.tested[-1][key], value) for key, value in watch.tested[-1].items())


def test_plain_checkpoint(training, tmp_path):
    *_, checkpoints, folder, cfg = training
    student = cfg.get("student", cfg)
    again, seen = runner(tmp_path, student, "tested", load_from=str(folder / "epoch_2.pth"))
    again.test()
    state = checkpoints[1]["state_dict"]
    assert len(seen.tested) == 1
    assert all(torch.equal(state[key], value) for key, value in seen.tested[0].items())


def test_load_from_average(training, tmp_path):
    *_, checkpoints, folder, cfg = training
    start = str(folder / "epoch_2.pth")
    again, seen = runner(tmp_path, cfg, "new", epochs=1, load_from=start)
    hook = next(hook for hook in again.hooks if isinstance(hook, StudentEMAHook))
    began = []
    hook.before_train = lambda runner: began.append((weights(runner), hook.ema_model.state_dict()))
    again.train()
    (student, averaged), state = began[0], checkpoints[1]["state_dict"]
    assert all(torch.equal(state[key], value) for key, value in student.items())
    assert int(read(tmp_path / "epoch_1.pth")["ema_state_dict"]["steps"]) == 2
    assert len(averaged) == len(student) + 1
    assert_close(seen.tested[0], average(seen.trained))


@pytest.mark.parametrize("name", ["timm", "distilled timm"])
def test_the_average_begins_late(name, tmp_path):
    made, watch = runner(tmp_path, MODELS[name], f"late {name}", hook=dict(begin_iter=3))
    made.train()
    first, last = (read(tmp_path / f"epoch_{i}.pth") for i in (1, 2))
    assert all(torch.equal(first["state_dict"][key], v) for key, v in watch.trained[1].items())
    assert int(first["ema_state_dict"]["steps"]) == 0
    assert_close(last["state_dict"], average(watch.trained, begin=2))
    assert int(last["ema_state_dict"]["steps"]) == 2


def test_average_without_buffers(tmp_path):
    made, watch = runner(tmp_path, MODELS["timm"], "buffers", hook=dict(update_buffers=False))
    made.train()
    state, mean = read(tmp_path / "epoch_2.pth")["state_dict"], average(watch.trained)
    names = [name for name, _ in made.model.model.named_buffers()]
    assert names and {"bn1.running_mean"} < set(names)
    for key in state:
        expected = watch.trained[-1][key] if key in names else mean[key]
        torch.testing.assert_close(state[key], expected, rtol=1e-5, atol=1e-6)


def test_resume_without_average(tmp_path):
    cfg = MODELS["distilled timm"]
    runner(tmp_path, cfg, "without", epochs=1)[0].train()
    checkpoint = read(tmp_path / "epoch_1.pth")
    del checkpoint["ema_state_dict"]
    torch.save(checkpoint, tmp_path / "plain.pth")
    again, seen = runner(tmp_path, cfg, "again", resume=True, load_from=str(tmp_path / "plain.pth"))
    again.train()
    assert len(seen.trained) == 2
    assert_close(read(tmp_path / "epoch_2.pth")["state_dict"], average(seen.trained))
