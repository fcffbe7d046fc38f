"""Real trainings of which a process is killed or stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.tools import ROOT, free_port

TIMEOUT = 5  # seconds for which a process may be stopped
TORCHRUN = 30  # seconds after which torchrun kills what it could not end
OPTIONS = [
    "train_cfg.max_iters=10000",
    "train_cfg.val_interval=10000",
    "train_dataloader.batch_size=2",
    "default_hooks.logger.interval=1",
    f"default_hooks.stopped_workers.timeout={TIMEOUT}",
    f"env_cfg.dist_cfg.timeout={TIMEOUT}",
]


def children(pid):
    found = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in found.read_text().split()] if found.is_file() else []


def is_running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.full
@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
@pytest.mark.parametrize(
    ("num_ranks", "target", "sent", "seconds", "line"),
    [
        (1, "worker", signal.SIGKILL, 0, "error: a data loader worker was killed"),
        (1, "worker", signal.SIGSTOP, TIMEOUT, f"has been stopped for {TIMEOUT} s, and the run"),
        (2, "worker", signal.SIGSTOP, TIMEOUT, "and the others were ended"),
        (2, "rank", signal.SIGKILL, 0, "was killed by SIGKILL, and the others were ended"),
        (2, "rank", signal.SIGSTOP, TIMEOUT + TORCHRUN, "and the others were ended"),
        (2, "torchrun", signal.SIGKILL, 0, None),
        (2, "torchrun", signal.SIGTERM, 0, "error: all processes were ended by SIGTERM"),
    ],
)
def test_run_ends(num_ranks, target, sent, seconds, line, digits, tmp_path):
    config = "configs/students/faster-rcnn_r18_fpn_digits.py"
    command = [sys.executable, "tools/train.py", config]
    if num_ranks > 1:
        command = ["bash", "tools/dist_train.sh", config, str(num_ranks)]
    log = tmp_path / "log"
    with log.open("w") as output:
        run = subprocess.Popen(
            [*command, "--work-dir", tmp_path, "--cfg-options", f"data_root={digits}/", *OPTIONS],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PYTHON": sys.executable, "PORT": free_port()},
        )
    ranks, workers = [], []
    try:
        while "Iter(train) [    3" not in log.read_text():
            assert run.poll() is None, log.read_text()[-4000:]
            time.sleep(0.5)
        ranks = children(run.pid) if num_ranks > 1 else [run.pid]
        workers = [worker for rank in ranks for worker in children(rank)]
        os.kill({"worker": workers, "rank": ranks, "torchrun": [run.pid]}[target][-1], sent)
        # What is beside the timeouts: ending all processes, on a busy machine.
        assert run.wait(seconds + 30) != 0
        time.sleep(10)  # workers look once in 5 seconds whether their process is there
        assert not [pid for pid in (*ranks, *workers) if is_running(pid)]
        text = log.read_text()
        assert "Traceback" not in text
        if line is not None:
            assert line in text.splitlines()[-1]
    finally:
        for pid in (*workers, *ranks, run.pid):
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)
        run.wait()
