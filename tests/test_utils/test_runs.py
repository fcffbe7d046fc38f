"""Reading work dirs."""

import math

import pytest
from helpers.runs import evaluation, log, step
from helpers.tools import ROOT
from mmengine.config import Config

from pat_mmdet.utils import RunDir, load_config, read_record, write_record
from pat_mmdet.utils.runs import hardware, lock_folder, num_cores, revision, versions


def test_nothing_there(tmp_path):
    training = RunDir(tmp_path / "none", 6)
    assert training.scalars() == [] and training.metrics() is None and not training.is_finished()
    assert training.progress() == 0
    assert math.isnan(training.train_time()) and math.isnan(training.time_left())
    assert read_record(training.folder) == {}


def test_truncated_log_line(tmp_path):
    log(tmp_path, "20260101_000000", step(2, 9.0), step(4, 9.0), tail='{"loss": 1.0, "ti')
    log(tmp_path, "20260101_000100", step(4, 2.0), step(6, 4.0), evaluation(6, 0.25))
    training = RunDir(tmp_path, 6)
    assert [entry["step"] for entry in training.scalars()] == [2, 4, 6, 6]
    assert training.metrics()["coco/bbox_mAP"] == 0.25
    assert training.train_time() == pytest.approx((9 + 2 + 4) / 3 * 6)
    assert not training.is_finished(), "without its checkpoint"
    training.checkpoint.touch()
    assert training.is_finished() and training.checkpoint.name == "iter_6.pth"
    assert training.time_left() == 0
    longer = RunDir(tmp_path, 8)
    assert not longer.is_finished() and longer.progress() == 6
    assert longer.time_left() == pytest.approx((9 + 2 + 4) / 3 * 2)


def test_unevaluated_checkpoint_is_not_finished(tmp_path):
    log(tmp_path, "20260101_000000", step(3), evaluation(3, 0.1), step(6))
    for number in (3, 6):
        (tmp_path / f"iter_{number}.pth").touch()
    assert not RunDir(tmp_path, 6).is_finished()


def test_training_by_epochs(tmp_path):
    cfg = Config(dict(train_cfg=dict(by_epoch=True, max_epochs=2)))
    training = RunDir.from_config(tmp_path, cfg)
    steps = [step(5, 1.0, epoch=1), step(10, 3.0, epoch=2)]
    log(tmp_path, "20260101_000000", *steps, {"accuracy/top1": 81.22, "step": 2})
    assert training.metrics()["accuracy/top1"] == 81.22 and training.progress() == 2
    assert training.train_time() == pytest.approx(20) and training.checkpoint.name == "epoch_2.pth"
    assert RunDir(tmp_path, 6, "epoch").time_left() == pytest.approx(40)


def test_undisturbed_time(tmp_path):
    means = [(10, 1.0), (50, 3.0), (100, 2.0), (150, 2.5)]  # the first over too few iterations
    log(tmp_path, "20260101_000000", *(step(*entry) for entry in means), evaluation(150, 0.25))
    assert RunDir(tmp_path, 200).undisturbed_time() == pytest.approx(400)
    assert math.isnan(RunDir(tmp_path / "none", 6).undisturbed_time())


def test_length_of_training():
    path = str(ROOT / "configs/pat/swin_p-res18_digits.py")
    assert RunDir.from_config(ROOT, load_config(path)).steps == 300
    assert RunDir.from_config(ROOT, load_config(path, {"train_cfg.max_iters": 7})).steps == 7
    with pytest.raises(ValueError, match="does not say how long"):
        RunDir.from_config(ROOT, Config(dict(train_cfg=dict())))


def test_lock_folder(tmp_path):
    with lock_folder(tmp_path), pytest.raises(BlockingIOError):
        lock_folder(tmp_path)
    lock_folder(tmp_path).close()


def test_record_and_what_it_notes(tmp_path, monkeypatch):
    write_record(tmp_path, {"seed": 1})
    assert read_record(tmp_path) == {"seed": 1}
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert set(versions()) == {"torch", "mmcv", "mmdet"} and num_cores() >= 1
    assert hardware(1) and hardware(8, "big") == "Slurm partition big, 8 GPUs"
    monkeypatch.setenv("PATH", "")
    assert revision() == "unknown"
