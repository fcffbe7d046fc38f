import json
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
UNREADABLE = ("abc", "custom_hooks=[dict(type='EMAHook',momentum=5)]")
COMMANDS = [
    *((tool, "--help") for tool in TOOLS),
    *(("pat_mmdet", *args) for args in (["--help"], ["--version"], ["trian"], [])),
    *(("pat_mmdet", name, "--help") for name in ("train", "get-flops")),
    *(("tools/train.py", "config.py", "--cfg-options", option) for option in UNREADABLE),
]
# Runs programs where torch and MMDetection cannot be imported, each in a fork of a process that
# has imported what all of them need.
WITHOUT_TORCH = """
import json, os, runpy, sys
from pathlib import Path

sys.modules.update(dict.fromkeys(("torch", "mmcv", "mmdet", "mmpretrain", "timm", "matplotlib")))
import pat_mmdet.cli.arguments

for number, args in enumerate(json.loads(sys.argv[1])):
    if os.fork() == 0:
        output = os.open(f"{sys.argv[2]}/{number}", os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1)
        os.dup2(output, 2)
        sys.argv = args
        if sys.argv[0].endswith(".py"):
            sys.path.insert(0, str(Path(sys.argv[0]).parent))
            runpy.run_path(sys.argv[0], run_name="__main__")
        else:
            runpy.run_module(sys.argv[0], run_name="__main__")
        sys.exit()
    _, status = os.wait()
    print(os.waitstatus_to_exitcode(status), flush=True)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Return the output of a command, which has to end with an exit code."""
    folder = tmp_path_factory.mktemp("outputs")
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, json.dumps(COMMANDS), folder],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    codes = list(map(int, done.stdout.split()))
    assert len(codes) == len(COMMANDS)

    def output(*args, code=0):
        number = COMMANDS.index(args)
        text = (folder / str(number)).read_text()
        assert codes[number] == code, text
        return text

    return output


@pytest.mark.parametrize("tool", TOOLS)
def test_help_does_not_wait_for_torch(tool, run):
    shown = run(tool, "--help")
    assert shown.startswith(f"usage: {tool.rpartition('/')[2]} [-h]")
    assert "--traceback" in shown


def test_help_lists_all_commands(run):
    shown = " ".join(run("pat_mmdet", "--help").split())
    commands = find_commands()
    assert {"train", "test", "export", "reproduce", "demo", "voc2coco", "get-flops"} <= set(
        commands
    )
    for name, (_, summary) in commands.items():
        assert summary
        assert f" {name} {summary} " in f"{shown} "


@pytest.mark.parametrize("command", ["train", "get-flops"])
def test_commands_are_the_tools(command, run):
    assert run("pat_mmdet", command, "--help").startswith(f"usage: pat-mmdet {command} [-h]")


def test_version(run):
    assert run("pat_mmdet", "--version").strip() == __version__


@pytest.mark.parametrize("args, message", [(["trian"], "'trian'"), ([], "required: COMMAND")])
def test_unknown_or_missing_command(args, message, run):
    assert message in run("pat_mmdet", *args, code=2)


@pytest.mark.parametrize("option", UNREADABLE)
def test_option_that_cannot_be_read(option, run):
    shown = run("tools/train.py", "config.py", "--cfg-options", option, code=2)
    assert shown.splitlines()[-1].startswith("train.py: error: --cfg-options takes key=value")
