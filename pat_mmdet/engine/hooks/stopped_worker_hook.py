"""End a run whose data loader workers are stopped."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
from pathlib import Path
from threading import Event, Thread

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from pat_mmdet.utils.argument_types import PositiveInt


@HOOKS.register_module()
class StoppedWorkerHook(Hook):
    """Kill data loader workers that have been stopped for long, which ends the run.

    A worker that is stopped (``SIGSTOP``) is alive, and its data loader may wait for it without
    end: the ``timeout`` of a data loader does not hold while it fetches a tensor from the worker,
    nor when the program exits. A worker that is killed is reported by torch. On Linux only.

    Args:
        timeout (int): Seconds for which a worker may be stopped. Those in which this process is
            stopped itself do not count.

    Raises:
        ValueError: If the timeout is not positive.
    """

    def __init__(self, timeout: PositiveInt = 300) -> None:
        if timeout <= 0:
            raise ValueError(f"StoppedWorkerHook: timeout={timeout} must be positive seconds")
        self.timeout = timeout
        self._done = Event()

    def before_run(self, runner: Runner) -> None:
        """Begin to watch the workers of this process."""
        Thread(target=self._watch, daemon=True).start()

    def after_run(self, runner: Runner) -> None:
        """Watch no longer."""
        self._done.set()

    def _watch(self) -> None:
        """Look for stopped workers once a second."""
        seconds: dict[int, int] = {}
        while not self._done.wait(1):
            pids = [worker.pid for worker in multiprocessing.active_children()]
            seconds = {pid: seconds.get(pid, 0) + 1 for pid in pids if _is_stopped(pid)}
            for pid in seconds:
                if seconds[pid] >= self.timeout:
                    print_log(
                        f"data loader worker {pid} has been stopped for {self.timeout} s and is "
                        "killed",
                        "current",
                        logging.ERROR,
                    )
                    os.kill(pid, signal.SIGKILL)


def _is_stopped(pid: int) -> bool:
    """Return True if a process is stopped, by a signal and not by a debugger."""
    try:
        # The state comes after the name in brackets.
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    except OSError:
        return False
