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
        "train.py", "configs/teachers/faster-rcnn_swin-p_fpn_digits.py", "--work-dir", folder,
        "--cfg-options", *options, cwd=ROOT,
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


PLAIN_TEST = """
import sys
sys.modules["pat_mmdet"] = None
from mmengine.config import Config
from mmengine.runner import Runner
cfg = Config.fromfile(sys.argv[1])
cfg.load_from, cfg.work_dir = sys.argv[2], sys.argv[3]
print(Runner.from_cfg(cfg).test())
"""


def test_exported_student_predicts_equally(trained, settings, digits, tmp_path):
    data = [option for option in settings if option.startswith("data_root")]
    dump = tmp_path / "own.pkl"
    run_tool(
        "test.py", PAIR, trained / "iter_6.pth", "--work-dir", tmp_path / "test", "--out", dump,
        "--show-dir", "shown", "--cfg-options", *data, "test_dataloader.batch_size=1",
    )  # fmt: skip
    assert len(list((tmp_path / "test").glob("*/shown/*"))) == 8

    exported = tmp_path / "student.pth"
    run_tool("export_student.py", PAIR, trained / "iter_6.pth", exported, "--cfg-options", *data)
    text = exported.with_suffix(".py").read_text()
    assert "pat_mmdet" not in text and "Checked" not in text and "teacher" not in text
    state = torch.load(exported, weights_only=True)["state_dict"]
    assert not any(key.startswith(("distill.", "student.")) for key in state)

    # The config has the absolute path of the data as a relative one.
    (tmp_path / "data").mkdir()
    (tmp_path / "data/digits").symlink_to(digits)
    plain_dump = tmp_path / "plain.pkl"
    script = PLAIN_TEST.replace(
        "print(Runner.from_cfg(cfg).test())",
        "from mmdet.evaluation import DumpDetResults\n"
        "cfg.test_dataloader.batch_size = 1\n"
        "runner = Runner.from_cfg(cfg)\n"
        f"runner.test_evaluator.metrics.append(DumpDetResults(out_file_path={str(plain_dump)!r}))\n"
        "runner.test()",
    )
    result = subprocess.run(
        [sys.executable, "-c", script, exported.with_suffix(".py"), exported, tmp_path / "plain"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    own, plain = (pickle.loads(path.read_bytes()) for path in (dump, plain_dump))
    assert len(own) == len(plain) == 8
    for x, y in zip(own, plain):
        for key in ("bboxes", "scores", "labels"):
            assert torch.equal(x["pred_instances"][key], y["pred_instances"][key])


PLAIN_TRAINING = """
import sys
sys.modules["pat_mmdet"] = None
from mmengine.config import Config
from mmengine.runner import Runner
cfg = Config.fromfile(sys.argv[1])
cfg.work_dir = sys.argv[2]
cfg.train_cfg.update(max_iters=2, val_interval=2)
cfg.train_dataloader.batch_size = 2
cfg.default_hooks.checkpoint.update(interval=2, save_best="coco/bbox_mAP")
cfg.custom_hooks = [dict(type="EMAHook")]
Runner.from_cfg(cfg).train()
"""


def test_teacher_from_plain_mmdetection(settings, digits, tmp_path):
    """The checkpoint has histories and NumPy scalars of mmengine's own hooks."""
    init_default_scope("mmdet")
    config = "configs/teachers/faster-rcnn_swin-p_fpn_digits.py"
    plain_config(load_config(config, dict(data_root=f"{digits}/"))).dump(tmp_path / "teacher.py")
    (tmp_path / "data").mkdir()
    (tmp_path / "data/digits").symlink_to(digits)
    result = subprocess.run(
        [sys.executable, "-c", PLAIN_TRAINING, tmp_path / "teacher.py", tmp_path / "plain"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    (checkpoint,) = (tmp_path / "plain").glob("best_*.pth")
    with pytest.raises(pickle.UnpicklingError, match="HistoryBuffer"):
        torch.load(checkpoint, weights_only=True)
    run_tool(
        "train.py", PAIR, "--work-dir", tmp_path / "pair", "--cfg-options",
        *fix_teacher(settings, checkpoint), "train_cfg.max_iters=1",
    )  # fmt: skip
    assert losses(tmp_path / "pair")[1]["loss_kd"] > 0


def test_teacher_with_tta_and_broken_images(teacher, settings, digits, tmp_path):
    data = tmp_path / "digits"
    shutil.copytree(digits, data)
    images = sorted((data / "val").iterdir())
    images[0].write_bytes(b"")
    images[5].write_bytes(images[5].read_bytes()[:200])
    for flags, options in (([], settings[:1]), (["--tta"], [f"data_root={data}/"])):
        output = run_tool(
            "test.py", PAIR, "--teacher", *flags, "--work-dir", tmp_path / "test",
            "--show-dir", "shown", "--cfg-options", *options, f"model.teacher_checkpoint={teacher}",
        )  # fmt: skip
        assert SCORE.search(output)
    assert "skipped so far: 2" in output
    assert sorted(len(list(path.iterdir())) for path in (tmp_path / "test").glob("*/shown")) == [
        6, 8,
    ]  # fmt: skip


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
        "dist_train.sh", PAIR, 2, "--work-dir", tmp_path, "--method", "pat", "--cfg-options",
        *fix_teacher(settings, teacher), "train_cfg.max_iters=3",
    )  # fmt: skip
    checkpoint = torch.load(tmp_path / "iter_3.pth", weights_only=True)
    states = checkpoint["distill_resume_state"]
    assert len(states) == 2, "the feedback of both processes is kept"
    assert not torch.equal(states[0]["0"], states[1]["0"])


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
