"""Configs run by MMEngine's Runner alone."""

import json
import logging
from types import SimpleNamespace

import pytest
from helpers.configs import untrained
from helpers.detectors import PAIR
from helpers.tools import ROOT
from mmengine.config import Config
from mmengine.runner import Runner

from pat_mmdet.engine.hooks import CheckConfigHook
from pat_mmdet.utils import load_config
from pat_mmdet.utils.errors import ConfigError

SHORT = """
train_cfg = dict(max_iters=2, val_interval=2)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False)
val_dataloader = dict(batch_size=4, num_workers=0, persistent_workers=False)
test_dataloader = val_dataloader
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
randomness = dict(seed=3)
model = dict(teacher_checkpoint=None, input_size=(64, 64))
"""
IN_PLACE = (
    SHORT
    + """
for loader in (train_dataloader, val_dataloader):
    loader["dataset"] = dict(data_root={root!r})
del loader
val_evaluator = dict(ann_file={root!r} + "annotations/val.json")
test_evaluator = val_evaluator
"""
)
AT_THE_TOP = SHORT + "data_root = {root!r}\n"


@pytest.fixture
def write(tmp_path, digits):
    """Writes a config on the generated digits, and gives its path."""

    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_text(f"_base_ = {str(ROOT / PAIR)!r}\n" + text.format(root=f"{digits}/"))
        return path

    return write


def losses(cfg, work_dir):
    """The losses of a training with the Runner alone."""
    # MMEngine keeps loggers and visualizers by name.
    cfg.work_dir, cfg.experiment_name = str(work_dir), work_dir.name
    cfg.visualizer.name = work_dir.name
    Runner.from_cfg(cfg).train()
    (log,) = work_dir.glob("*/vis_data/scalars.json")
    return [
        line["loss"] for line in map(json.loads, log.read_text().splitlines()) if "loss" in line
    ]


def test_runner_and_tools_train_alike(write, tmp_path):
    path = write(IN_PLACE)
    expected = losses(Config.fromfile(path), tmp_path / "runner")
    assert len(expected) == 2
    assert losses(load_config(str(path)), tmp_path / "tool") == expected
    assert losses(load_config(str(write(AT_THE_TOP, "top.py"))), tmp_path / "top") == expected


def test_runner_refuses_unapplied_data_root(write, tmp_path, digits):
    path = write(AT_THE_TOP)
    cfg = Config.fromfile(path)
    cfg.work_dir = str(tmp_path / "runner")
    # The data of the base is there: a plain Runner would train on it.
    (tmp_path / "data").mkdir()
    (tmp_path / "data/digits").symlink_to(digits)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        runner = Runner.from_cfg(cfg)
        with pytest.raises(ConfigError, match=r"data_root='.*' at the top of .*print_config.py"):
            runner.train()
    assert not list((tmp_path / "runner").glob("*.pth"))


@pytest.mark.parametrize(
    "name",
    [
        "pat/swin_p-res18_digits",
        "pat/tinyvit_mini-mixer_mini_cifar10",
        "students/mixer_mini_cifar10",
    ],
)
def test_runner_builds_a_shipped_config(name, tmp_path):
    cfg = Config.fromfile(ROOT / f"configs/{name}.py")
    cfg.work_dir = str(tmp_path)
    if "teacher" in cfg.model:
        cfg.model.teacher = load_config(str(ROOT / f"configs/{name}.py")).model.teacher
    runner = Runner.from_cfg(untrained(cfg))
    hooks = {type(hook).__name__ for hook in runner.hooks}
    assert {"CheckConfigHook", "CheckFiniteHook"} <= hooks


def runner(num_images, num_data=None, **schedule):
    """Return the parts of a runner that the hook reads before a training with a memory."""
    images = SimpleNamespace(dataset=range(num_images))  # as a wrapper has them
    cfg = dict(
        train_cfg=dict(by_epoch=False, max_iters=100),
        param_scheduler=dict(type="MultiStepLR", by_epoch=False, milestones=[50], **schedule),
    )
    return SimpleNamespace(
        cfg=cfg,
        logger=logging.getLogger("runner"),
        model=SimpleNamespace(distill=SimpleNamespace(num_data=num_data)),
        train_dataloader=SimpleNamespace(dataset=images),
    )


def test_memory_has_the_size_of_the_data():
    hook = CheckConfigHook()
    hook.before_train(runner(20, num_data=20))
    hook.before_train(runner(20))
    with pytest.raises(ConfigError, match="num_data=21 but there are 20 training images"):
        hook.before_train(runner(20, num_data=21))


@pytest.mark.parametrize(("end", "warned"), [(100, False), (200, True)])
def test_schedule_after_the_end_is_a_warning(caplog, end, warned):
    CheckConfigHook().before_train(runner(20, end=end))
    message = "param_scheduler: end=200 lies after the end of training (100) and is not reached"
    assert caplog.messages == [message] * warned


def test_evaluation_after_the_end_is_a_warning(caplog):
    made = runner(20)
    made.cfg["train_cfg"]["val_begin"] = 101
    CheckConfigHook().before_train(made)
    message = "train_cfg.val_begin=101 lies after the end of training (100): no evaluation"
    assert caplog.messages == [message]
