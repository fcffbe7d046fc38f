"""Stopped data loader workers."""

import multiprocessing
import os
import signal
import time

import pytest

from pat_mmdet.engine.hooks import StoppedWorkerHook


@pytest.fixture
def workers():
    """Two processes that sleep."""
    context = multiprocessing.get_context("fork")
    made = [context.Process(target=time.sleep, args=(60,)) for _ in range(2)]
    for worker in made:
        worker.start()
    yield made
    for worker in made:
        worker.kill()


def test_stopped_worker_is_killed(workers):
    stopped, paused = workers
    hook = StoppedWorkerHook(timeout=3)
    hook.before_run(None)
    os.kill(stopped.pid, signal.SIGSTOP)
    for _ in range(2):
        os.kill(paused.pid, signal.SIGSTOP)
        time.sleep(1.2)
        os.kill(paused.pid, signal.SIGCONT)
        time.sleep(1.2)
    stopped.join(30)
    hook.after_run(None)
    assert stopped.exitcode == -signal.SIGKILL
    assert paused.is_alive(), "it was stopped for less than the timeout"


def test_timeout_out_of_range():
    with pytest.raises(ValueError, match="must be positive"):
        StoppedWorkerHook(timeout=0)
