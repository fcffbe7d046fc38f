"""Which checkpoint a training goes on from, what has changed since, and who may train."""

import os
import shutil
import subprocess
import sys
import time

import pytest
import torch

from pat_mmdet.utils.resume import (
    changed_settings,
    find_resumable,
    list_checkpoints,
    training_settings,
)
from pat_mmdet.utils.runs import lock_training


def save(path, number=4, **more):
    content = dict(
        meta=dict(epoch=0, iter=number),
        state_dict=dict(weight=torch.arange(100.0)),
        message_hub={},
        optimizer={},
    )
    torch.save({**content, **more}, path)


@pytest.fixture
def folder(tmp_path):
    """A work dir as a training leaves it."""
    folder = tmp_path / "work"
    folder.mkdir()
    for number in (2, 10, 4):
        save(folder / f"iter_{number}.pth", number)
    save(folder / "best_score_iter_12.pth")
    (folder / "last_checkpoint").write_text(str(folder / "iter_10.pth"))
    return folder


@pytest.fixture
def warnings(monkeypatch):
    found = []
    monkeypatch.setattr("pat_mmdet.utils.resume._warn", found.append)
    return found


def found(folder):
    """The name of the checkpoint that is found, which lies in the folder."""
    path, checkpoint = find_resumable(folder, folder)
    assert os.path.dirname(path) == str(folder) and checkpoint["meta"]["iter"] > 0
    return os.path.basename(path)


def test_newest_checkpoint_by_number(folder, warnings):
    assert [path.name for path in list_checkpoints(folder)] == [
        "iter_10.pth", "iter_4.pth", "iter_2.pth",
    ]  # fmt: skip
    assert found(folder) == "iter_10.pth" and not warnings
    other = folder.parent
    for name in ("epoch_1", "epoch_2_iter_30", "epoch_2", "epoch_10", "swin_224", "v1_9_e"):
        save(other / f"{name}.pth")
    names = [path.stem for path in list_checkpoints(other)]
    assert names == ["epoch_10", "epoch_2_iter_30", "epoch_2", "epoch_1"]
    assert other / "v1_9_e.pth" in list_checkpoints(other, "v1_{}_e.pth")


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path):
    content = bytearray(path.read_bytes())
    content[content.index(torch.tensor(50.0).numpy().tobytes())] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (cut, "iter_10.pth' (* bytes) cannot be read: it is truncated"),
        (lambda path: path.write_bytes(b""), "iter_10.pth' (0 bytes) cannot be read"),
        (flip, "iter_10.pth' is damaged: its content does not fit its checksums"),
        (lambda path: path.unlink(), "iter_10.pth': resuming from * instead"),
        (lambda path: torch.save({"state_dict": {}}, path), "it holds weights alone"),
        (lambda path: save(path, "three"), "it holds weights alone (no meta.iter)"),
        (lambda path: save(path, -5), "it holds weights alone (no meta.iter)"),
    ],
)
def test_damaged_newest_checkpoint(change, message, folder, warnings):
    change(folder / "iter_10.pth")
    assert found(folder) == "iter_4.pth"
    start, _, end = message.partition("*")
    assert any(start in warning and end in warning for warning in warnings), warnings
    assert f"last_checkpoint names '{folder}/iter_10.pth': resuming from" in warnings[-1]
    assert not any("\n" in warning for warning in warnings)


@pytest.mark.parametrize("text", [None, "", "\0\xff\n garbled", "/elsewhere/iter_10.pth"])
def test_last_checkpoint_is_not_needed(text, folder, warnings):
    last = folder / "last_checkpoint"
    last.unlink()
    if text is not None:
        last.write_text(text)
    assert found(folder) == "iter_10.pth"
    assert len(warnings) == 1 and f"{last} names" in warnings[0]


def test_copied_work_dir(folder, warnings):
    copy = folder.parent / "copy"
    shutil.copytree(folder, copy)
    cut(folder / "iter_10.pth")
    assert found(copy) == "iter_10.pth"
    assert (
        len(warnings) == 1 and f"names '{folder}/iter_10.pth': resuming from {copy}" in warnings[0]
    )


def test_checkpoints_of_an_earlier_training(folder, warnings):
    hour_ago = time.time() - 3600
    os.utime(folder / "iter_10.pth", (hour_ago, hour_ago))
    (folder / "last_checkpoint").write_text(str(folder / "iter_4.pth"))
    assert found(folder) == "iter_4.pth" and not warnings


def test_damaged_checkpoints_alone(folder, warnings):
    for path in list_checkpoints(folder):
        cut(path)
    with pytest.raises(ValueError, match=r"\(iter_10.pth, iter_4.pth, iter_2.pth\), see .* Remove"):
        find_resumable(folder, folder)
    assert len(warnings) == 3
    for path in list_checkpoints(folder):
        path.unlink()
    assert find_resumable(folder, folder) is None
    assert "has no checkpoint: training starts anew" in warnings[-1]


def test_changed_settings():
    def settings(method="PAT", lr=0.1, processes=1, **arguments):
        cfg = dict(
            model=dict(method=dict(type=method, **arguments), teacher_checkpoint=None),
            optim_wrapper=dict(optimizer=dict(lr=lr, betas=(0.9, 0.99))),
            train_dataloader=dict(batch_size=4, num_workers=2),
            work_dir="anywhere",
        )
        return training_settings(cfg, processes)

    before = settings(prompt="channel")
    assert all(type(value) is str for value in before.values())
    assert changed_settings(before, settings(prompt="channel")) == ""
    assert changed_settings(before, settings("KD", 0.2, 2)) == (
        "model.method.type PAT -> KD, number of processes 1 -> 2, "
        "model.method.prompt channel -> not set, optim_wrapper.optimizer.lr 0.1 -> 0.2"
    )
    assert changed_settings(before, settings("KD", 0.2), limit=1) == (
        "model.method.type PAT -> KD and 2 more"
    )


HOLD = """
import sys, time
from pathlib import Path
from pat_mmdet.utils.runs import lock_training
lock = lock_training(Path(sys.argv[1]))
print("locked", flush=True)
time.sleep(60)
"""


def test_one_training_a_work_dir(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(ValueError, match=rf"is in use: process {other.pid} on \S+ trains in"):
            lock_training(tmp_path, patience=0.3)
        # The lock of a dead process is no obstacle, nor is its end waited for in vain.
        other.kill()
        lock = lock_training(tmp_path)
    assert str(os.getpid()) in (tmp_path / ".training.lock").read_text()
    lock_training(tmp_path, patience=0).close()  # of the same process, as two Runners in a notebook
    lock.close()
