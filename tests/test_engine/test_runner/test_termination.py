"""SIGTERM: workers of data loaders, and processes that were not told."""

import os
import signal
import subprocess
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from pat_mmdet.engine.runner import StopRequest, shield_workers, termination


class Workers(Dataset):
    """Samples are the workers that made them."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return os.getpid()


def test_workers_obey_their_parent_alone():
    loader = DataLoader(Workers(), 1, num_workers=2, worker_init_fn=lambda number: None)
    shield_workers(loader)
    iterator = iter(loader)
    pids = {int(next(iterator)) for _ in range(4)}
    subprocess.run(["kill", "-TERM", *map(str, pids)], check=True)
    assert {int(pid) for pid in iterator} == pids, "they go on"
    # Their parent, as at the end of a training.
    loader = DataLoader(Workers(), 1, num_workers=1, persistent_workers=True)
    shield_workers(loader)
    iterator = iter(loader)
    os.kill(int(next(iterator)), signal.SIGTERM)
    (worker,) = iterator._workers
    worker.join(10)
    assert worker.exitcode == 0


def test_signal_is_noted():
    before = signal.getsignal(signal.SIGTERM)
    stop = StopRequest()
    assert not stop.requested
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.requested and stop.is_due(SimpleNamespace(iter=3))
    stop.close()
    assert signal.getsignal(signal.SIGTERM) == before


def test_process_that_was_told_alone(monkeypatch):
    store = torch.distributed.HashStore()
    monkeypatch.setattr(termination, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed.distributed_c10d, "_get_default_store", lambda: store)
    runner = SimpleNamespace(iter=3, optim_wrapper=SimpleNamespace(should_update=lambda: True))
    stop = StopRequest()
    try:
        assert not stop.is_due(runner)
        stop._noted -= 60
        with pytest.raises(SystemExit, match="reached some of the processes only; no checkpoint"):
            stop.is_due(runner)
        store.set("pat_mmdet/stop/1", "4")
        assert [stop.is_due(SimpleNamespace(**{**vars(runner), "iter": i})) for i in (4, 5)] == [
            False, True,
        ]  # fmt: skip
    finally:
        stop.close()
