"""How the processes of one training end."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed.run
from helpers.tools import ROOT, free_port
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from pat_mmdet.utils import launch
from pat_mmdet.utils.setup_env import _die_with_parent

SCRIPT = """
import os, signal, time
if os.environ["RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(60)
"""


def test_killed_process(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "pat_mmdet.utils.launch", "--nproc_per_node=2"]
    done = subprocess.run(
        [*command, "--master_port", free_port(), script],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
    )
    assert done.returncode == 1 and "Traceback" not in done.stderr
    line = done.stderr.splitlines()[-1]
    assert re.match(r"error: process 1 \(pid \d+\) was killed by SIGKILL, and the others", line)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            ChildFailedError("train.py", {1: ProcessFailure(1, 7, 3, "<N/A>")}),
            r"process 1 \(pid 7\) ended with the exit code 3",
        ),
        (SignalException("ended", signal.SIGTERM), "all processes were ended by SIGTERM"),
    ],
)
def test_other_endings(error, message, monkeypatch):
    def torchrun():
        raise error

    monkeypatch.setattr(torch.distributed.run, "main", torchrun)
    with pytest.raises(SystemExit, match=f"^error: {message}"):
        launch.main()


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has the call")
def test_process_dies_with_its_parent():
    context = multiprocessing.get_context("fork")
    pids = context.Queue()

    def child():
        _die_with_parent()
        pids.put(os.getpid())
        time.sleep(60)

    def parent():
        context.Process(target=child).start()
        time.sleep(60)

    started = context.Process(target=parent)
    started.start()
    pid = pids.get(timeout=30)
    os.kill(started.pid, signal.SIGKILL)
    deadline = time.monotonic() + 10
    while is_running(pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not is_running(pid)


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
