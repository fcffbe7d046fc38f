"""End-to-end runs of the tools on a small folder of images."""

import json
import re
import runpy
import sys

import numpy as np
import pytest
import timm
import torch
from helpers.tools import ROOT, run_tool
from mmengine.config import Config
from mmengine.registry import MODELS, init_default_scope
from PIL import Image

PAIR = ROOT / "configs/pat/tinyvit_mini-res18_mini_cifar10.py"
TRAINED = 24  # images
SPY = '''
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS

BANKS = ("bank_student", "bank_teacher")


@HOOKS.register_module()
class Spy(Hook):
    """Writes for each process which images it saw in each step, and which rows moved."""

    def before_train(self, runner):
        self.steps, self.banks = [], self.read(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        seen = [sample.sample_idx for sample in data_batch["data_samples"]]
        before, self.banks = self.banks, self.read(runner)
        moved = [(old != new).any(1).nonzero().flatten() for old, new in zip(before, self.banks)]
        self.steps.append((seen, *(rows.tolist() for rows in moved)))

    def after_train(self, runner):
        path = f"{runner.work_dir}/spy_{get_rank()}.pth"
        torch.save(dict(steps=self.steps, banks=torch.stack(self.banks)), path)

    def read(self, runner):
        state = runner.model.module.distill.state_dict()
        return [state[name].clone() for name in BANKS]
'''


@pytest.fixture(autouse=True)
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """Images of two classes in folders, as the README describes one's own."""
    root = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for split, count in (("train", TRAINED // 2), ("val", 3)):
        for name in ("cat", "dog"):
            folder = root / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = rng.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return root


@pytest.fixture(scope="session")
def settings(data):
    """Options for two epochs of three steps."""
    return [
        f"data_root={data}/",
        "classes=('cat','dog')",
        "train_cfg.max_epochs=2",
        "train_dataloader.batch_size=4",
        *(
            f"{name}_dataloader.{key}"
            for name in ("train", "val", "test")
            for key in ("num_workers=0", "persistent_workers=False")
        ),
        "default_hooks.logger.interval=1",
        "model.teacher_checkpoint=None",
        "randomness.seed=1",
    ]


def own_config(path, text):
    path.write_text(f"_base_ = {str(PAIR)!r}\n{text}")
    return path


def losses(folder):
    """The logged losses of each step."""
    (file,) = folder.glob("*/vis_data/scalars.json")
    entries = [json.loads(line) for line in file.read_text().splitlines()]
    return [
        {key: entry[key] for key in entry if "loss" in key} for entry in entries if "loss" in entry
    ]


def test_crd_over_epochs_in_two_processes(settings, tmp_path, monkeypatch):
    (tmp_path / "spy.py").write_text(SPY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    config = own_config(
        tmp_path / "mine.py",
        "custom_imports = dict(imports=['pat_mmdet', 'spy'])\n"
        "custom_hooks = [\n"
        "    dict(type='Spy'), dict(type='EMAHook', momentum=0.1, update_buffers=True),\n"
        "]\n",
    )
    options = [
        "--method", "crd", "--cfg-options", *settings,
        f"model.method.num_data={TRAINED}", "model.method.num_negatives=16",
    ]  # fmt: skip
    runs = tmp_path / "unbroken", tmp_path / "resumed"
    train = ("train.py", config, "--launcher", "pytorch")
    run_tool(*train, "--work-dir", runs[0], *options, processes=2)
    first, second = (torch.load(runs[0] / f"spy_{rank}.pth") for rank in (0, 1))
    assert len(first["steps"]) == len(second["steps"]) == 6
    for (own, *own_moved), (other, *other_moved) in zip(first["steps"], second["steps"]):
        assert len(own) == len(other) == 4
        for moved in (*own_moved, *other_moved):
            assert moved == sorted(own + other), "the rows of the images of both processes"
    for epoch in (slice(0, 3), slice(3, 6)):
        steps = [*first["steps"][epoch], *second["steps"][epoch]]
        assert sorted(i for seen, *_ in steps for i in seen) == list(range(TRAINED))
    assert first["steps"][:3] != first["steps"][3:], "each epoch has its own order"
    assert torch.equal(first["banks"], second["banks"])

    resume = ("--resume", runs[0] / "epoch_1.pth")
    run_tool(*train, "--work-dir", runs[1], *resume, *options, processes=2)
    whole, resumed = (torch.load(run / "epoch_2.pth", weights_only=True) for run in runs)
    state = whole["state_dict"]
    # With EMA the state dict has the averages, and the banks of the training.
    assert torch.equal(state["distill.bank_teacher"], first["banks"][1])
    assert not any(key.endswith(("bank_student", "z_student")) for key in whole["ema_state_dict"])
    for part in ("state_dict", "ema_state_dict"):
        assert all(torch.equal(resumed[part][key], value) for key, value in whole[part].items())
    assert torch.load(runs[1] / "spy_1.pth")["steps"] == second["steps"][3:]
    assert losses(runs[1]) == losses(runs[0])[3:]


@pytest.mark.full
def test_pat_plus_resumes_exactly_in_two_processes(settings, tmp_path):
    command = ["dist_train.sh", PAIR, 2, "--method", "pat_plus"]
    options = ["--cfg-options", *settings]
    runs = tmp_path / "unbroken", tmp_path / "resumed"
    run_tool(*command, "--work-dir", runs[0], *options)
    run_tool(*command, "--work-dir", runs[1], "--resume", runs[0] / "epoch_1.pth", *options)
    assert all({"loss_fd", "loss_region", "loss_kd"} < set(step) for step in losses(runs[0]))
    assert losses(runs[1]) == losses(runs[0])[3:]
    whole, resumed = (torch.load(run / "epoch_2.pth", weights_only=True) for run in runs)
    assert any(key.startswith("distill.region_heads") for key in whole["state_dict"])
    for key, value in whole["state_dict"].items():
        assert torch.equal(resumed["state_dict"][key], value), key


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """The config of a pair with a student that timm does not have by this name."""
    student = (
        "model = dict(student=dict(\n"
        "    _delete_=True, type='PretrainedTimmClassifier', num_classes=10, img_size=32,\n"
        "    model_name='swin_pico_patch4_window7_224',\n"
        "    data_preprocessor={{_base_.preprocessor}},\n"
        "))\n"
    )
    return own_config(tmp_path_factory.mktemp("configs") / "mine.py", student)


@pytest.fixture(scope="session")
def trained(tmp_path_factory, settings, pair):
    """Work dir and output of a training in mixed precision."""
    folder = tmp_path_factory.mktemp("pat")
    options = [*settings, "model.method.raa_dim=32", "train_cfg.max_epochs=1"]
    output = run_tool(
        "train.py", pair, "--work-dir", folder, "--amp", "--cfg-options", *options, cwd=ROOT
    )
    return folder, output


def accuracy(output):
    return re.findall(r"accuracy/top1: ([\d.]+)", output)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_amp_without_gpu(trained):
    folder, output = trained
    assert "no GPU: full precision instead of mixed" in output
    assert len(losses(folder)) == 6
    for step in losses(folder):
        assert {"loss_kd", "loss_fd", "loss_reg"} < set(step)
        assert all(np.isfinite(value) for value in step.values())
    assert len(accuracy(output)) == 1


def test_exported_timm_student(trained, pair, settings, tmp_path):
    folder, _ = trained
    checkpoint, exported = folder / "epoch_1.pth", tmp_path / "student.pth"
    scores = {}
    for name, args in (("test.py", ["--work-dir", tmp_path]), ("export_student.py", [exported])):
        options = [option for option in settings if "model" not in option]
        scores[name] = run_tool(name, pair, checkpoint, *args, "--cfg-options", *options)
    assert len(accuracy(scores["test.py"])) == 1

    text = exported.with_suffix(".py").read_text()
    assert "pat_mmdet" not in text and "teacher" not in text and "pico" not in text
    cfg = Config.fromfile(exported.with_suffix(".py"))
    init_default_scope("mmpretrain")
    model = MODELS.build(cfg.model).eval()
    state = torch.load(exported, weights_only=True)["state_dict"]
    model.load_state_dict(state)
    options = {k: v for k, v in cfg.model.items() if k not in ("type", "data_preprocessor", "loss")}
    network = timm.create_model(**options, checkpoint_path=str(exported)).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(network(images), model(images))
    trained_state = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert all(torch.equal(trained_state[key], value) for key, value in state.items())
    assert network.state_dict().keys() == state.keys()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "checkpoint 'work_dirs/pretrained/swin_tiny_patch4_window7_224_cifar100.pth' does"),
        (["{t}={cut}"], "cut.pth' (1000 bytes) cannot be read: it is truncated"),
        (["{t}={trained}"], "was trained on 2 classes, "),
        (["data_root=nowhere/"], "data folder 'nowhere/' does not exist; put the data there"),
        (["--method", "okd"], "unknown method 'okd'; known methods: cc, crd, "),
    ],
)
def test_bad_input_gives_one_clear_line(args, message, trained, tmp_path, monkeypatch):
    checkpoint = trained[0] / "epoch_1.pth"
    cut = tmp_path / "cut.pth"
    cut.write_bytes(checkpoint.read_bytes()[:1000])
    names = dict(t="model.teacher_checkpoint", cut=cut, trained=checkpoint)
    args = [arg.format(**names) for arg in args]
    flags = [arg for arg in args if "=" not in arg]
    options = [f"data_root={tmp_path}/", *(arg for arg in args if "=" in arg)]
    config = "configs/pat/swin_t-res18_cifar100.py"
    argv = ["train.py", config, *flags, "--work-dir", tmp_path, "--cfg-options", *options]
    monkeypatch.setattr(sys, "argv", [str(arg) for arg in argv])
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools/train.py"), run_name="__main__")
    error = stop.value.code
    assert error.startswith("error: ") and message in error and "\n" not in error
