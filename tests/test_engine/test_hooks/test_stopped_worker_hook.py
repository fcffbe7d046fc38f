"""Stopped data loader workers."""

import multiprocessing
import os
import signal
import time

import pytest

from pat_mmdet.engine.hooks import StoppedWorkerHook, stopped_worker_hook


def watch_workers(pids):
    """A process with two workers that never end."""
    hook = StoppedWorkerHook(timeout=10)
    for _ in range(2):
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
        worker.start()
        pids.put(worker.pid)
    hook.before_run(None)
    time.sleep(60)


def test_stopped_worker_ends_the_process(capfd, monkeypatch):
    monkeypatch.setattr(stopped_worker_hook, "_SECOND", 0.1)
    context = multiprocessing.get_context("fork")
    pids = context.Queue()
    process = context.Process(target=watch_workers, args=(pids,))
    process.start()
    stopped, paused = (pids.get(timeout=30) for _ in range(2))
    for _ in range(3):  # never for as long as the timeout
        os.kill(paused, signal.SIGSTOP)
        time.sleep(0.4)
        os.kill(paused, signal.SIGCONT)
        time.sleep(0.2)
    assert process.is_alive()
    os.kill(stopped, signal.SIGSTOP)
    process.join(30)
    assert process.exitcode == 1
    assert capfd.readouterr().err.startswith(f"error: data loader worker {stopped} has been sto")
    for pid in (stopped, paused):
        with pytest.raises(ProcessLookupError):
            for _ in range(100):
                os.kill(pid, 0)
                time.sleep(0.1)


def test_timeout_out_of_range():
    with pytest.raises(ValueError, match="must be positive"):
        StoppedWorkerHook(timeout=0)
