import subprocess
import sys

import pytest
from helpers.tools import ROOT

from pat_mmdet import __version__
from pat_mmdet.cli.main import find_commands

TOOLS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "tools").rglob("*.py")
    if "__main__" in path.read_text()
)
# Runs the program of the arguments where torch and MMDetection cannot be imported.
WITHOUT_TORCH = """
import runpy, sys
from pathlib import Path
sys.modules.update(dict.fromkeys(("torch", "mmcv", "mmdet", "mmpretrain", "timm", "matplotlib")))
sys.argv.pop(0)
if sys.argv[0].endswith(".py"):
    sys.path.insert(0, str(Path(sys.argv[0]).parent))
    runpy.run_path(sys.argv[0], run_name="__main__")
else:
    runpy.run_module(sys.argv[0], run_name="__main__")
"""


def run(*args, code=0):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *args], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("tool", TOOLS)
def test_help_does_not_wait_for_torch(tool):
    shown = run(tool, "--help")
    assert shown.startswith(f"usage: {tool.rpartition('/')[2]} [-h]")
    assert "--traceback" in shown


def test_help_lists_all_commands():
    shown = " ".join(run("pat_mmdet", "--help").split())
    commands = find_commands()
    assert {"train", "test", "export", "reproduce", "demo", "voc2coco", "get-flops"} <= set(
        commands
    )
    for name, (_, summary) in commands.items():
        assert summary
        assert f" {name} {summary} " in f"{shown} "


@pytest.mark.parametrize("command", ["train", "get-flops"])
def test_commands_are_the_tools(command):
    assert run("pat_mmdet", command, "--help").startswith(f"usage: pat-mmdet {command} [-h]")


def test_version():
    assert run("pat_mmdet", "--version").strip() == __version__


@pytest.mark.parametrize("args, message", [(["trian"], "'trian'"), ([], "required: COMMAND")])
def test_unknown_or_missing_command(args, message):
    assert message in run("pat_mmdet", *args, code=2)


@pytest.mark.parametrize("option", ["abc", "custom_hooks=[dict(type='EMAHook',momentum=5)]"])
def test_option_that_cannot_be_read(option):
    shown = run("tools/train.py", "config.py", "--cfg-options", option, code=2)
    assert shown.splitlines()[-1].startswith("train.py: error: --cfg-options takes key=value")
