"""What a training has left in its work dir, and what is noted there of how it was run."""

from __future__ import annotations

import fcntl
import json
import math
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import IO

import torch
from mmengine.config import Config

from pat_mmdet.utils.io import write_atomic
from pat_mmdet.utils.paths import ROOT


@dataclass(frozen=True)
class RunDir:
    """A training and what its work dir tells about it; the folder need not exist yet.

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
        """The training of a config, whose length is that of the config.

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
        """str: What the steps are, for people."""
        return "iterations" if self.unit == "iter" else "epochs"

    def scalars(self) -> list[dict]:
        """All logged values, by step; a resumed training has several log files.

        The later file counts where two have the same step. Lines that were cut by a kill are left
        out.
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
        """The evaluation after the last step, if there is one."""
        for entry in self.scalars():
            if entry["step"] == self.steps and "loss" not in entry:
                return entry
        return None

    def is_finished(self) -> bool:
        """Tells whether the last checkpoint is there and was evaluated."""
        return self.checkpoint.is_file() and self.metrics() is not None

    def progress(self) -> int:
        """The last step in the logs."""
        unit = "step" if self.unit == "iter" else "epoch"
        return max((entry.get(unit, 0) for entry in self._steps()), default=0)

    def train_time(self) -> float:
        """Seconds of all training steps, data loading included; NaN without a log.

        Logged are means over some steps, so this is their mean times the number of steps.
        """
        logged = self._steps()
        if not logged:
            return math.nan
        count = self.steps if self.unit == "iter" else logged[-1]["step"]
        return sum(entry["time"] for entry in logged) / len(logged) * count

    def _steps(self) -> list[dict]:
        return [entry for entry in self.scalars() if "loss" in entry and "time" in entry]


def read_record(folder: Path) -> dict:
    """Reads ``run.json``, what is known of how a training was run; empty where there is none."""
    file = folder / "run.json"
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}


def write_record(folder: Path, record: dict) -> None:
    """Writes ``run.json``."""
    write_atomic(folder / "run.json", json.dumps(record, indent=2) + "\n")


def lock_folder(folder: Path, wait: bool = False) -> IO | None:
    """Locks a folder until the file is closed, here and in every process that inherits it.

    Args:
        folder (Path): An existing folder.
        wait (bool): Whether to wait for another process's lock.

    Returns:
        IO, optional: The lock; None if another process has it.
    """
    lock = open(folder / ".lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        lock.close()
        return None
    except OSError:
        # Some file systems of clusters have no locks; there it goes without.
        pass
    return lock


def revision() -> str:
    """The project's git revision, with '+' if files differ from it, or 'unknown'."""
    git = ["git", "--no-optional-locks", "-C", str(ROOT)]
    try:
        commit, changes = (
            subprocess.run([*git, *args], capture_output=True, text=True, check=True).stdout.strip()
            for args in (("rev-parse", "--short=12", "HEAD"), ("status", "--porcelain"))
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+" if changes else "")


def versions() -> dict[str, str]:
    """Installed versions of the libraries that a result depends on."""
    return {name: str(import_module(name).__version__) for name in ("torch", "mmcv", "mmdet")}


def cores() -> int:
    """Number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0))


def hardware(gpus: int, partition: str | None = None) -> str:
    """What trainings run on: GPUs, of a Slurm partition or of this machine, or else CPU cores."""
    if partition is not None:
        return f"Slurm partition {partition}, {gpus} GPUs"
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name(0)} x {gpus}"
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", info.read_text()) if info.is_file() else None
    return f"{found.group(1) if found else platform.machine()} x {cores()} cores"
