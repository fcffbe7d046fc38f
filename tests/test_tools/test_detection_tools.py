"""End-to-end runs of the tools on a small set of digits."""

import json
import os
import pickle
import re
import runpy
import shutil
import signal
import subprocess
import sys

import pytest
import torch
from helpers.tools import ROOT, run_tool
from mmengine.registry import init_default_scope

from pat_mmdet.cli.export import plain_config
from pat_mmdet.utils import load_config

PAIR = "configs/pat/swin_p-res18_digits.py"
TEACHER = "configs/teachers/faster-rcnn_swin-p_fpn_digits.py"
SCORE = re.compile(r"coco/bbox_mAP: ([-\d.]+)")


@pytest.fixture(autouse=True)
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)


@pytest.fixture(scope="session")
def settings(digits):
    """Options for six short steps with a checkpoint at the third."""
    return [
        f"data_root={digits}/",
        "train_cfg.max_iters=6",
        "train_cfg.val_interval=6",
        "train_dataloader.batch_size=2",
        "default_hooks.checkpoint.interval=3",
        "default_hooks.logger.interval=1",
        "model.method.input_size=(64,64)",
        "model.teacher_checkpoint=None",
        "randomness.seed=1",
    ]


@pytest.fixture(scope="session")
def pair(tmp_path_factory):
    """A user's config outside of the project, which adds EMA to the digits pair."""
    path = tmp_path_factory.mktemp("configs") / "mine.py"
    path.write_text(
        f"_base_ = {str(ROOT / PAIR)!r}\n"
        "custom_hooks = [dict(type='EMAHook', momentum=0.1, update_buffers=True)]\n"
    )
    return path


def fix_teacher(settings, path):
    return [
        f"model.teacher_checkpoint={path}" if "teacher_checkpoint" in option else option
        for option in settings
    ]


@pytest.fixture(scope="session")
def teacher(tmp_path_factory, settings):
    """A teacher trained for six steps by the tool."""
    folder = tmp_path_factory.mktemp("teacher")
    options = [option for option in settings if not option.startswith("model.")]
    run_tool(
        "train.py", TEACHER, "--work-dir", folder, "--cfg-options", *options, cwd=ROOT,
    )  # fmt: skip
    return folder / "iter_6.pth"


@pytest.fixture(scope="session")
def trained(tmp_path_factory, settings, teacher, pair):
    """The work dir of an unbroken training with PAT."""
    folder = tmp_path_factory.mktemp("pat")
    run_tool(
        "train.py", pair, "--work-dir", folder, "--cfg-options", *fix_teacher(settings, teacher),
        cwd=ROOT,
    )  # fmt: skip
    return folder


def losses(folder):
    """The logged losses of each step; later runs replace earlier ones."""
    found = {}
    for file in sorted(folder.glob("*/vis_data/scalars.json")):
        for line in file.read_text().splitlines():
            entry = json.loads(line)
            if "loss" in entry:
                keep = {key: entry[key] for key in entry if "loss" in key or key == "grad_norm"}
                found[entry["step"]] = keep
    return found


def test_checkpoint_of_training(trained):
    checkpoint = torch.load(trained / "iter_6.pth", weights_only=True)
    state = checkpoint["state_dict"]
    assert "backbone.conv1.weight" in state
    rest = [key for key in state if not key.startswith("distill.")]
    assert not any("stages" in key or "teacher" in key for key in rest)
    assert any(key.startswith("distill.raa") for key in state)
    assert sorted(losses(trained)) == [1, 2, 3, 4, 5, 6]
    assert {"loss_kd", "loss_fd", "loss_reg"} < set(losses(trained)[6])


KILL = """
import os
import signal
from pathlib import Path

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class KillOnce(Hook):
    \"""Kill the process after the fourth iteration, the first time.\"""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        killed = Path(runner.work_dir, "killed")
        if runner.iter == 3 and not killed.exists():
            killed.touch()
            os.kill(os.getpid(), signal.SIGKILL)
"""


def test_resume_after_kill_is_exact(tmp_path, settings, teacher, trained, pair, monkeypatch):
    folder = tmp_path / "out"
    (tmp_path / "kill.py").write_text(KILL)
    config = tmp_path / "killed.py"
    config.write_text(
        f"_base_ = {str(pair)!r}\n"
        "custom_imports = dict(imports=['pat_mmdet', 'kill'])\n"
        "custom_hooks = [dict(type='EMAHook', momentum=0.1, update_buffers=True),\n"
        "                dict(type='KillOnce')]\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    command = [
        "train.py", config, "--work-dir", folder, "--cfg-options", *fix_teacher(settings, teacher),
    ]  # fmt: skip
    run_tool(*command, code=-signal.SIGKILL)
    assert (folder / "last_checkpoint").read_text().endswith("iter_3.pth")
    for file in folder.glob("*/vis_data/scalars.json"):
        file.unlink()
    run_tool(*command, "--resume")
    resumed, unbroken = losses(folder), losses(trained)
    assert sorted(resumed) == [4, 5, 6]
    assert resumed == {step: unbroken[step] for step in (4, 5, 6)}
    first = torch.load(folder / "iter_6.pth", weights_only=True)
    second = torch.load(trained / "iter_6.pth", weights_only=True)
    for part in ("state_dict", "ema_state_dict"):
        assert all(torch.equal(first[part][key], value) for key, value in second[part].items())


# One process for both, as importing the libraries takes most of its time.
PLAIN = """
import sys
sys.modules["pat_mmdet"] = None
from mmdet.evaluation import DumpDetResults
from mmengine.config import Config
from mmengine.runner import Runner

cfg = Config.fromfile("student.py")
cfg.load_from, cfg.work_dir, cfg.test_dataloader.batch_size = "student.pth", "test", 1
runner = Runner.from_cfg(cfg)
runner.test_evaluator.metrics.append(DumpDetResults(out_file_path="plain.pkl"))
runner.test()

cfg = Config.fromfile("teacher.py")
cfg.work_dir = cfg.experiment_name = "train"
cfg.train_cfg.update(max_iters=2, val_interval=2)
cfg.train_dataloader.batch_size = 2
cfg.default_hooks.checkpoint.update(interval=2, save_best="coco/bbox_mAP")
cfg.custom_hooks = [dict(type="EMAHook")]
Runner.from_cfg(cfg).train()
"""


@pytest.fixture(scope="session")
def plain(trained, settings, digits, tmp_path_factory):
    """A folder where MMDetection tested the exported student and trained a teacher, by itself."""
    folder = tmp_path_factory.mktemp("plain")
    exported, checkpoint = folder / "student.pth", trained / "iter_6.pth"
    run_tool(
        "export_student.py", PAIR, checkpoint, exported, "--cfg-options", settings[0], cwd=ROOT
    )
    init_default_scope("mmdet")
    teacher = load_config(str(ROOT / TEACHER), dict(data_root=f"{digits}/"))
    plain_config(teacher).dump(folder / "teacher.py")
    # The configs have the absolute path of the data as a relative one.
    (folder / "data").mkdir()
    (folder / "data/digits").symlink_to(digits)
    result = subprocess.run(
        [sys.executable, "-c", PLAIN], capture_output=True, text=True, check=False, cwd=folder
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_exported_student_predicts_equally(trained, plain, settings, tmp_path):
    text = (plain / "student.py").read_text()
    assert "pat_mmdet" not in text and "Checked" not in text and "teacher" not in text
    state = torch.load(plain / "student.pth", weights_only=True)["state_dict"]
    assert not any(key.startswith(("distill.", "student.")) for key in state)

    run_tool(
        "test.py", PAIR, trained / "iter_6.pth", "--work-dir", tmp_path / "test", "--out",
        tmp_path / "own.pkl", "--show-dir", "shown", "--cfg-options", settings[0],
        "test_dataloader.batch_size=1",
    )  # fmt: skip
    assert len(list((tmp_path / "test").glob("*/shown/*"))) == 8
    own, other = (
        pickle.loads(path.read_bytes()) for path in (tmp_path / "own.pkl", plain / "plain.pkl")
    )
    assert len(own) == len(other) == 8
    for x, y in zip(own, other):
        for key in ("bboxes", "scores", "labels"):
            assert torch.equal(x["pred_instances"][key], y["pred_instances"][key])


def test_teacher_from_plain_mmdetection(plain, settings, tmp_path):
    """The checkpoint has histories and NumPy scalars of mmengine's own hooks."""
    (checkpoint,) = (plain / "train").glob("best_*.pth")
    with pytest.raises(pickle.UnpicklingError, match="HistoryBuffer"):
        torch.load(checkpoint, weights_only=True)
    run_tool(
        "train.py", PAIR, "--work-dir", tmp_path / "pair", "--cfg-options",
        *fix_teacher(settings, checkpoint), "train_cfg.max_iters=1",
    )  # fmt: skip
    assert losses(tmp_path / "pair")[1]["loss_kd"] > 0


def test_teacher_with_tta_and_broken_images(teacher, digits, tmp_path):
    data = tmp_path / "digits"
    shutil.copytree(digits, data)
    images = sorted((data / "val").iterdir())
    images[0].write_bytes(b"")
    images[5].write_bytes(images[5].read_bytes()[:200])
    output = run_tool(
        "test.py", PAIR, "--teacher", "--tta", "--work-dir", tmp_path / "test", "--show-dir",
        "shown", "--cfg-options", f"data_root={data}/", f"model.teacher_checkpoint={teacher}",
    )  # fmt: skip
    assert SCORE.search(output) and "skipped so far: 2" in output
    assert len(list((tmp_path / "test").glob("*/shown/*"))) == 6


def test_method_none_trains_the_student_alone(settings, tmp_path):
    options = [option for option in settings if not option.startswith("model.")]
    run_tool(
        "train.py", PAIR, "--method", "none", "--work-dir", tmp_path, "--auto-scale-lr",
        "--cfg-options", *options, "train_cfg.max_iters=3",
    )  # fmt: skip
    state = torch.load(tmp_path / "iter_3.pth", weights_only=True)["state_dict"]
    assert not any(key.startswith("distill.") for key in state)
    assert "loss_kd" not in losses(tmp_path)[3]


def test_two_processes(settings, teacher, tmp_path):
    run_tool(
        "train.py", PAIR, "--launcher", "pytorch", "--work-dir", tmp_path, "--method", "pat",
        "--cfg-options", *fix_teacher(settings, teacher), "train_cfg.max_iters=3", processes=2,
    )  # fmt: skip
    checkpoint = torch.load(tmp_path / "iter_3.pth", weights_only=True)
    states = checkpoint["distill_resume_state"]
    assert len(states) == 2, "the feedback of both processes is kept"
    assert not torch.equal(states[0]["0"], states[1]["0"])


@pytest.mark.parametrize(
    ("script", "args"),
    [("dist_train.sh", ["config.py"]), ("dist_test.sh", ["config.py", "iter_6.pth"])],
)
def test_scripts_start_torchrun(script, args):
    """With real processes they are run by ``-m full``, and torchrun in ``test_launch.py``."""
    env = {**os.environ, "PYTHON": "echo", "PORT": "7", "NNODES": "3", "NODE_RANK": "1"}
    command = ["bash", f"tools/{script}", *args, "2", "--work-dir", "out"]
    shown = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    launch, tool = shown.split(f" tools/{script[5:-3]}.py ")
    assert launch == (
        "-m pat_mmdet.utils.launch --nnodes=3 --node_rank=1 --nproc_per_node=2 "
        "--master_addr=127.0.0.1 --master_port=7"
    )
    assert tool.split() == [*args, "--launcher", "pytorch", "--work-dir", "out"]


@pytest.mark.full
def test_dist_test(trained, settings, tmp_path):
    output = run_tool(
        "dist_test.sh", PAIR, trained / "iter_6.pth", 2, "--work-dir", tmp_path, "--cfg-options",
        settings[0],
    )  # fmt: skip
    assert SCORE.search(output)


def cut(path, out):
    out.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return out


class Foreign:
    def __reduce__(self):
        return (os.system, ("echo foreign code ran",))


@pytest.mark.parametrize(
    ("tool", "args", "message"),
    [
        ("train.py", ["configs/pat/nothing.py"], "config 'configs/pat/nothing.py' does not exist"),
        ("train.py", [PAIR, "--method", "pta"], "unknown method 'pta'; known methods: "),
        ("train.py", ["{student}", "--method", "pat"], "has no teacher"),
        ("train.py", [PAIR, "{t}=nowhere.pth"], "checkpoint 'nowhere.pth' does not exist"),
        ("train.py", [PAIR, "{t}={truncated}"], "truncated"),
        ("train.py", [PAIR, "{t}={foreign}"], "refused"),
        ("train.py", [PAIR, "{t}={trained}"], "does not fit FasterRCNN"),
        ("train.py", [PAIR, "{t}=None", "data_root=nowhere/"], "set data_root in the config"),
        ("train.py", [PAIR, "--resume", "{truncated}", "{t}=None"], "truncated"),
        ("test.py", [PAIR, "nowhere.pth"], "checkpoint 'nowhere.pth' does not exist"),
        ("test.py", [PAIR, "{teacher}"], "keys are missing"),
        ("export_student.py", [PAIR, "{foreign}", "out.pth"], "refused"),
    ],
)
def test_bad_input_gives_one_clear_line(
    tool, args, message, teacher, trained, digits, tmp_path, monkeypatch, capfd
):
    foreign = tmp_path / "foreign.pth"
    torch.save({"state_dict": {}, "extra": Foreign()}, foreign)
    paths = dict(
        t="model.teacher_checkpoint",
        student="configs/students/faster-rcnn_r18_fpn_digits.py",
        truncated=cut(teacher, tmp_path / "cut.pth"),
        foreign=foreign,
        trained=trained / "iter_6.pth",
        teacher=teacher,
    )
    args = [arg.format(**paths) for arg in args]
    options = [arg for arg in args if "=" in arg]
    flags = [arg for arg in args if "=" not in arg]
    if tool != "export_student.py":
        flags += ["--work-dir", tmp_path / "work"]
    if not any(option.startswith("data_root") for option in options):
        options.append(f"data_root={digits}/")
    # In this process, as importing everything takes most of such a short run.
    argv = [tool, *map(str, flags), "--cfg-options", *options]
    monkeypatch.setattr(sys, "argv", argv)
    with pytest.raises(SystemExit) as stop:
        runpy.run_path(str(ROOT / "tools" / tool), run_name="__main__")
    error = stop.value.code
    assert error.startswith("error: ") and message in error and "\n" not in error
    assert "foreign code ran" not in capfd.readouterr().out
