"""Read logs and metadata of a training run."""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import re
import subprocess
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import fmean
from typing import IO

from mmengine.config import Config

from pat_mmdet.utils.io import write_atomic
from pat_mmdet.utils.paths import ROOT

_MIN_WINDOW = 20  # iterations, whose mean says something of the pace of a training


@dataclass(frozen=True)
class RunDir:
    """Work dir of a training, which need not exist yet.

    Attributes:
        folder (Path): The work dir.
        steps (int): Planned number of iterations, or of epochs.
        unit (str): ``'iter'`` or ``'epoch'``.
    """

    folder: Path
    steps: int
    unit: str = "iter"

    @classmethod
    def from_config(cls, folder: Path, cfg: Config) -> RunDir:
        """Create the run of a config, which decides its length.

        Args:
            folder (Path): The work dir.
            cfg (Config): Config of the training.

        Raises:
            ValueError: If the config does not say how long to train.
        """
        for unit, key in (("iter", "max_iters"), ("epoch", "max_epochs")):
            if cfg.get("train_cfg") and key in cfg.train_cfg:
                return cls(folder, int(cfg.train_cfg[key]), unit)
        raise ValueError(
            f"config {cfg.filename!r} does not say how long to train; set train_cfg.max_iters or "
            "train_cfg.max_epochs"
        )

    @property
    def checkpoint(self) -> Path:
        """Path: The checkpoint of the last step, which is written at the end."""
        return self.folder / f"{self.unit}_{self.steps}.pth"

    @property
    def unit_name(self) -> str:
        """str: ``'iterations'`` or ``'epochs'``."""
        return "iterations" if self.unit == "iter" else "epochs"

    def scalars(self) -> list[dict]:
        """Return all logged values, by step.

        A resumed training has several log files; the later file counts where two have the same
        step. Lines that were cut by a kill are left out.
        """
        by_step: dict[tuple, dict] = {}
        for file in sorted(self.folder.glob("*/vis_data/scalars.json")):
            for line in file.read_text(errors="replace").splitlines():
                try:
                    entry = json.loads(line)
                    by_step[(entry["step"], "loss" in entry)] = entry
                except (ValueError, KeyError, TypeError):
                    continue
        return [by_step[key] for key in sorted(by_step)]

    def metrics(self) -> dict | None:
        """Return the evaluation after the last step; None if there is none."""
        for entry in self.scalars():
            if entry["step"] == self.steps and "loss" not in entry:
                return entry
        return None

    def is_finished(self) -> bool:
        """Return whether the last checkpoint exists and was evaluated."""
        return self.checkpoint.is_file() and self.metrics() is not None

    def progress(self) -> int:
        """Return the last logged step."""
        key = "step" if self.unit == "iter" else "epoch"
        return max((entry.get(key, 0) for entry in self._train_steps()), default=0)

    def train_time(self) -> float:
        """Return the seconds of all training steps with data loading; NaN without a log.

        The log has means over some steps, so this is their mean times the number of steps.
        """
        logged = self._train_steps()
        if not logged:
            return math.nan
        iterations = self.steps if self.unit == "iter" else logged[-1]["step"]
        return fmean(entry["time"] for entry in logged) * iterations

    def time_left(self) -> float:
        """Return the seconds of the steps that are left, without evaluations; NaN without a log."""
        logged = self._train_steps()
        if not logged:
            return math.nan
        spent = fmean(entry["time"] for entry in logged) * logged[-1]["step"]
        return spent * (self.steps / self.progress() - 1)

    def undisturbed_time(self) -> float:
        """Return the seconds of all training steps at the fastest pace; NaN without a log.

        That is the pace of a machine that does nothing else for a while: the number of iterations
        times the lowest logged mean (over 50 iterations, the window of
        ``configs/_base_/default_runtime.py``). Means over fewer than 20, at the start, are left
        out. It takes all iterations to be of the same kind.
        """
        logged = [entry for entry in self._train_steps() if entry["step"] >= _MIN_WINDOW]
        if not logged:
            return math.nan
        iterations = self.steps if self.unit == "iter" else logged[-1]["step"]
        return min(entry["time"] for entry in logged) * iterations

    def _train_steps(self) -> list[dict]:
        return [entry for entry in self.scalars() if "loss" in entry and "time" in entry]


def read_record(folder: Path) -> dict:
    """Read ``run.json``, which says how a training was run; empty if there is none."""
    file = folder / "run.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write_record(folder: Path, record: dict) -> None:
    """Write ``run.json``."""
    write_atomic(folder / "run.json", json.dumps(record, indent=2) + "\n")


def lock_folder(folder: Path, wait: bool = False) -> IO:
    """Lock a folder until the returned file is closed in all processes that inherited it.

    Args:
        folder (Path): An existing folder.
        wait (bool): Whether to wait until another process releases it.

    Returns:
        IO: The lock.

    Raises:
        BlockingIOError: If another process holds it.
    """
    lock = open(folder / ".lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        lock.close()
        raise
    except OSError:
        pass  # some file systems of clusters have no locks
    return lock


def lock_training(folder: Path, patience: float = 10) -> IO:
    """Lock a work dir for the training of this process, until it ends or the file is closed.

    It is not the lock of :func:`lock_folder`, which the parent of a training holds. Processes that
    are forked, such as workers of data loaders, do not hold it.

    Args:
        folder (Path): The work dir.
        patience (float): Seconds to wait for a training that is about to end, as after a kill.

    Returns:
        IO: The lock.

    Raises:
        ValueError: If another process trains in the work dir.
    """
    lock = open(folder / ".training.lock", "a+")  # noqa: SIM115
    give_up = time.monotonic() + patience
    while True:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except (BlockingIOError, PermissionError):  # which of them depends on the system
            if time.monotonic() < give_up:
                time.sleep(0.2)
                continue
            lock.seek(0)
            owner = lock.read().strip() or "another process"
            lock.close()
            raise ValueError(
                f"work dir {str(folder)!r} is in use: {owner} trains in it. Wait for its end, or "
                "give another --work-dir"
            ) from None
        except OSError:
            return lock  # some file systems of clusters have no locks
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}\n")
    lock.flush()
    return lock


def revision() -> str:
    """Return the project's git revision, with '+' if tracked files differ from it, or 'unknown'."""
    command = ["git", "-C", str(ROOT), "--no-optional-locks", "describe"]
    options = ["--always", "--abbrev=12", "--exclude=*", "--dirty=+"]
    try:
        return subprocess.check_output(
            [*command, *options], text=True, stderr=subprocess.DEVNULL
        ).strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def versions() -> dict[str, str]:
    """Return the installed versions of the libraries that a result depends on."""
    return {name: str(import_module(name).__version__) for name in ("torch", "mmcv", "mmdet")}


def num_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def hardware(gpus: int, partition: str | None = None) -> str:
    """Describe what trainings run on.

    Args:
        gpus (int): GPUs of a training.
        partition (str, optional): Partition of Slurm; without it, this machine is meant.
    """
    if partition is not None:
        return f"Slurm partition {partition}, {gpus} GPUs"
    import torch  # not at the top, as `--help` does not wait for it

    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)} x {gpus}"
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.is_file() else None
    return f"{found.group(1) if found else platform.machine()} x {num_cores()} cores"
