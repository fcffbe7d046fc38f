"""The tables, and the tool that trains and collects them."""

import csv
import importlib
import itertools
import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from helpers.runs import evaluation, log, step
from helpers.tools import ROOT, keep_handlers
from matplotlib.text import Text

from pat_mmdet.utils import RunDir, load_config, read_record, write_record
from pat_mmdet.utils.runs import lock_folder
from pat_mmdet.utils.table_plot import plot_table
from pat_mmdet.utils.tables import find_table, load_tables

PAIR = "swin_p-res18"
TOOL = str(ROOT / "tools/reproduce.py")


@pytest.fixture(autouse=True)
def in_project(monkeypatch):
    monkeypatch.chdir(ROOT)
    with keep_handlers():
        yield


@pytest.fixture
def reproduce(monkeypatch, capfd):
    """Runs the tool in this process; gives its output, and what it exits with."""

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["reproduce.py", *map(str, args)])
        code = None
        try:
            runpy.run_path(TOOL, run_name="__main__")
        except SystemExit as stop:
            code = stop.code
        return capfd.readouterr().out, code

    return run


def wait_for(condition, process):
    for _ in range(6000):  # ten minutes, for a busy machine
        if condition() or process.poll() is not None:
            break
        time.sleep(0.1)
    assert condition(), process.poll()


@pytest.mark.parametrize("name", load_tables())
def test_rows_of_tables(name):
    entry = yaml.safe_load((ROOT / "configs/tables.yml").read_text())[name]
    table, columns = load_tables()[name], entry.get("columns", [])
    width = len(table.metrics) if entry["task"] == "detection" else 1
    alone = {}
    for pair, numbers in entry["pairs"].items():
        assert len(numbers) == len(columns)
        for column, value in zip(columns, numbers):
            values = [] if value is None else np.atleast_1d(value).tolist()
            assert len(values) in (0, width) and all(0 < v < 100 for v in values)
            teacher, student = pair.split("-")
            cell = {"teacher": f"{teacher}/teacher"}.get(column, f"{pair}/{column}")
            if column == "none" and entry.get("share_student"):
                cell = f"{student}/none"
            if cell in table.cells:
                assert table.cells[cell].published == tuple(values)
            if column in ("teacher", "none"):  # the same network in all its rows
                assert alone.setdefault((column, pair.split("-")[column == "none"]), value) == value


def test_cells_of_the_paper_are_there():
    tables = load_tables()
    assert tables["coco"].cells["swin_t-res18/pat"].published_text == "35.62 / 56.67 / 38.04"
    # 4 teachers, 5 students alone, 12 pairs with 9 methods; 5 students, 15 pairs.
    assert len(tables["cifar100"].cells) == 4 + 5 + 12 * 9
    assert len(tables["imagenet"].cells) == 5 + 15 * 9
    assert tables["cifar100"].cells["deit_t/none"].config == "pat/convnext_t-deit_t_cifar100.py"
    assert tables["cifar100"].cells["swin_t-res18/pat"].teacher is None
    assert tables["cifar10"].cells["tinyvit_mini-res18_mini/kd"].teacher == "tinyvit_mini/teacher"


def test_detection_tables_have_every_method():
    known = {path.stem for path in (ROOT / "configs/_base_/methods").glob("*.py")}
    known -= {"crd", "pat_raa", "pat_spatial"}  # two forms of PAT are left to --method
    for name in ("coco", "digits", "bccd"):
        cells = load_tables()[name].cells.values()
        for pair in {cell.pair for cell in cells if not cell.is_teacher}:
            assert {cell.method for cell in cells if cell.pair == pair} == known


@pytest.mark.parametrize(
    ("name", "patterns", "settings"),
    [
        ("coco", ["swin_t/*", "*-res18/*"], "equal"),
        ("coco", ["*/ofa", "*/pat"], "published"),
        ("cifar100", ["swin_t/*", "swin_t-res18/*", "*/none"], "equal"),
        ("cifar10", ["*/teacher", "*/none", "*/pat"], "equal"),
    ],
)
def test_listed_commands_are_accepted(name, patterns, settings, reproduce, monkeypatch):
    flags = ["--table", name, "--cells", *patterns, "--settings", settings]
    output, code = reproduce("--list", *flags)
    assert code is None
    parse = vars(importlib.import_module("pat_mmdet.cli.train"))["parse_args"]
    commands = [shlex.split(line) for line in output.splitlines() if line.startswith("    ")]
    cells = find_table(name).select(patterns)
    assert len(commands) == len(cells)
    assert all(cell.published_text in output for cell in cells)
    teacher = None
    for cell, command in zip(cells, commands):
        assert command[:2] == ["python", "tools/train.py"]
        monkeypatch.setattr(sys, "argv", command[1:])
        args = parse()
        assert args.config == f"configs/{cell.config}" and args.resume == "auto"
        assert args.method == (None if cell.is_teacher else cell.method)
        cfg = load_config(args.config, args.cfg_options, args.method, args.settings)
        assert cfg.settings == ("equal" if cell.is_teacher else settings)
        assert cfg.randomness.seed == 0 and args.work_dir.endswith("/seed_0")
        if cell.is_teacher:
            teacher = str(RunDir.from_config(Path(args.work_dir), cfg).checkpoint)
        elif cell.method != "none":
            assert (cfg.model.teacher_checkpoint == teacher) == bool(cell.teacher)


def test_train_kill_resume_skip(digits, tmp_path, reproduce):
    options = [
        f"data_root={digits}/",
        "train_cfg.max_iters=8",
        "train_dataloader.batch_size=2",
        "default_hooks.checkpoint.interval=2",
        "default_hooks.logger.interval=1",
        "model.method.input_size=(64,64)",
    ]
    flags = ["--table", "digits", "--work-dir", tmp_path, "--cfg-options", *options]
    command = ["--cells", "*/pat", "--jobs", 2, *flags]
    teacher = tmp_path / "digits/teacher/swin_p/seed_0"
    student = tmp_path / "digits/equal" / PAIR / "pat/seed_0"
    process = subprocess.Popen([sys.executable, TOOL, *map(str, command)])
    wait_for((teacher / "last_checkpoint").exists, process)
    with pytest.raises(BlockingIOError):
        lock_folder(teacher)
    process.terminate()
    process.wait()
    lock_folder(teacher).close()
    assert not student.exists()
    step = int(re.search(r"iter_(\d+)", (teacher / "last_checkpoint").read_text())[1])

    output, code = reproduce(*command)
    assert code is None, output
    for folder in (teacher, student):
        assert RunDir(folder, 8).is_finished() and (folder / "output.log").stat().st_size > 1000
    record = read_record(teacher)
    assert [start["exit_code"] for start in record["starts"]] == [None, 0]
    resumed = sorted(teacher.glob("*/vis_data/scalars.json"))[1].read_text().splitlines()
    steps = [entry["step"] for entry in map(json.loads, resumed) if "loss" in entry]
    assert steps == list(range(step + 1, 9))
    record = read_record(student)
    assert record["options"] == options and record["length"] == [8, "iter"]
    assert record["cell"] == f"{PAIR}/pat" and record["starts"][0]["hardware"]
    assert len(list(student.glob("*/vis_data/scalars.json"))) == len(record["starts"]) == 1

    assert reproduce(*command)[0].count("done already") == 2
    with lock_folder(student):
        assert "another process is training it" in reproduce(*command)[0]
    _, code = reproduce(*command, "train_cfg.val_interval=5")
    assert code.startswith("error: ") and "holds a training with options" in code
    table, _ = reproduce("--table", "digits", "--work-dir", tmp_path, "--collect")
    assert table.count("| 8 iterations |") == 2


SRUN = """#!/bin/sh
echo $$ > "$(dirname "$0")/pid"
echo "$@" >> "$(dirname "$0")/calls"
case "$*" in *wait*) exec sleep 600;; esac
exit 3
"""


@pytest.fixture
def slurm(tmp_path, digits, monkeypatch):
    """A Slurm that notes what it is asked for and fails, and flags for it."""
    srun = tmp_path / "bin/srun"
    srun.parent.mkdir()
    srun.write_text(SRUN)
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", f"{srun.parent}:{os.environ['PATH']}")
    return [
        "--table", "digits", "--launcher", "slurm", "--partition", "big", "--gpus", "4",
        "--work-dir", str(tmp_path / "work"), "--teacher-checkpoint", str(srun),
        "--cfg-options", f"data_root={digits}/",
    ]  # fmt: skip


def test_failing_cells_do_not_stop_others(slurm, tmp_path, reproduce):
    output, code = reproduce("--cells", "*/none", "*/kd", "--seeds", "1", *slurm)
    assert output.count(": training, logs in") == 2
    lines = code.splitlines()
    assert "failed" in lines[0] and len(lines) == 3
    assert f"{PAIR}/kd seed 1 (exit code 3): see " in lines[2]
    none, kd = (tmp_path / "bin/calls").read_text().splitlines()
    assert "-p big" in kd and "--ntasks=4" in kd and "--launcher slurm --method kd" in kd
    assert "train_dataloader.batch_size=2" in kd and "randomness.seed=1" in kd
    assert f"model.teacher_checkpoint={tmp_path}/bin/srun" in kd and "teacher" not in none
    output, _ = reproduce("--table", "digits", "--work-dir", tmp_path / "work", "--collect")
    assert output.count("| seed 1: 0/300 failed |") == 2


def test_generated_data_and_failing_teacher(slurm, tmp_path, reproduce, monkeypatch):
    small = replace(
        find_table("digits"),
        generator=("dataset_converters/make_digits.py", "--train", "3", "--val", "2"),
    )
    monkeypatch.setitem(load_tables(), "digits", small)
    place = slurm.index("--teacher-checkpoint")
    flags = [*slurm[:place], "--jobs", "2", "--cfg-options", f"data_root={tmp_path}/made/"]
    output, code = reproduce("--cells", "*/kd", "*/none", *flags)
    assert (tmp_path / "made/annotations/val.json").is_file()
    assert f"{PAIR}/kd seed 0: left out, its teacher is not done" in output
    assert "swin_p/teacher seed 0 (exit code 3)" in code and f"{PAIR}/none" in code
    assert code.count("see ") == code.count("output.log") == 2
    _, code = reproduce("--cells", "*/kd", *flags)
    assert "swin_p/teacher" in code, "what failed is tried again"


def test_interrupt_stops_the_trainings(slurm, tmp_path):
    process = subprocess.Popen(
        [sys.executable, TOOL, "--cells", "*/none", *slurm, "_wait=1"],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        # Shells start what runs in the background, tests perhaps, with interrupts ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    wait_for((tmp_path / "bin/calls").exists, process)
    process.send_signal(signal.SIGINT)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 130 and "give the same command again to resume" in output
    folder = tmp_path / "work/digits/equal" / PAIR / "none/seed_0"
    assert read_record(folder)["starts"][0]["exit_code"] is None


def test_lock_after_kill(slurm, tmp_path, reproduce):
    flags = ["--cells", "*/none", *slurm, "_wait=1"]
    process = subprocess.Popen([sys.executable, TOOL, *flags], stdout=subprocess.DEVNULL)
    wait_for((tmp_path / "bin/calls").exists, process)
    process.kill()
    process.wait()
    assert "another process is training it" in reproduce(*flags)[0]
    os.killpg(os.getpgid(int((tmp_path / "bin/pid").read_text())), signal.SIGKILL)


def trained(folder, steps, value, seconds=0.5, **start):
    """A training of a table as it is when done; without a value, the evaluation is missing."""
    log(folder, "20260101_000000", step(steps, seconds))
    if value is not None:
        scores = {"coco/bbox_mAP_50": 0.5, "coco/bbox_mAP_75": 0.2, **evaluation(steps, value)}
        log(folder, "20260101_000001", scores)
    (folder / f"iter_{steps}.pth").touch()
    start = {"hardware": "GPU x 8", "revision": "abc", "exit_code": 0, **start}
    write_record(folder, {"length": [steps, "iter"], "options": [], "starts": [start]})


def test_damaged_last_checkpoint_is_trained_again(slurm, tmp_path, reproduce):
    flags = ["--cells", "*/none", *slurm]
    reproduce(*flags)
    folder = tmp_path / "work/digits/equal" / PAIR / "none/seed_0"
    log(folder, "20260101_000000", step(300), evaluation(300, 0.1))
    checkpoint = folder / "iter_300.pth"
    torch.save({"state_dict": {}}, checkpoint)
    assert "done already" in reproduce(*flags)[0]
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    output, _ = reproduce(*flags)
    assert f"{checkpoint} is damaged" in output and ": training, logs in" in output


def test_accuracy_against_time(tmp_path, reproduce):
    base = tmp_path / "work/digits"
    trained(base / "teacher/swin_p/seed_0", 900, 0.497)
    trained(base / "equal" / PAIR / "none/seed_0", 300, 0.15, 0.4)
    trained(base / "equal" / PAIR / "pat/seed_0", 300, 0.18, 0.9)
    trained(base / "equal" / PAIR / "pat/seed_1", 300, 0.19, 0.6)
    trained(base / "equal" / PAIR / "kd/seed_0", 300, 0.19, 2.0)  # longer than the student alone
    trained(tmp_path / "long/digits/equal" / PAIR / "none/seed_0", 600, 0.39, 0.4)
    trained(tmp_path / "same/digits/equal" / PAIR / "pat_plus/seed_0", 300, 0.191, 0.4)
    flags = ["--table", "digits", "--work-dir", tmp_path / "work", "--collect"]
    added = [f"student alone, 600={tmp_path}/long", f"same distance={tmp_path}/same"]
    output, code = reproduce(*flags, "--add", *added)
    assert code is None and "digits.md, .csv and .png" in output
    assert cv2.imread(str(tmp_path / "work/digits.png")).std() > 0

    with open(tmp_path / "work/digits.csv") as file:
        rows = list(csv.DictReader(file))
    found = {
        (row["method"], row["variant"]): (row["seconds undisturbed"], row["alone in that time"])
        for row in rows
        if row["mAP"]
    }
    assert found == {
        ("teacher", ""): ("450", ""),
        ("none", ""): ("120", ""),
        ("none", "student alone, 600"): ("240", ""),
        ("pat", ""): ("180", "27.0"),
        ("kd", ""): ("600", ""),
        ("pat_plus", "same distance"): ("120", "15.0"),
    }

    figure = plot_table(find_table("digits"), rows)
    figure.draw_without_rendering()
    # Of the text alone, without the line to its point.
    boxes = [Text.get_window_extent(label) for label in figure.axes[0].texts]
    assert len(boxes) == 6
    for lower, upper in itertools.pairwise(sorted(boxes, key=lambda box: box.y0)):
        assert lower.y1 <= upper.y0
    assert plot_table(find_table("digits"), [rows[0]]) is None, "the teacher alone"

    _, code = reproduce(*flags, "--add", f"nothing={tmp_path}/nothing")
    assert "no training of table digits is there" in code


def test_collected_table(tmp_path, reproduce):
    base = tmp_path / "coco"
    pat = base / "equal/swin_t-res18/pat"
    trained(pat / "seed_0", 180000, 0.351, 0.2)
    trained(pat / "seed_1", 180000, 0.357, 0.4, hardware="GPU x 4", revision="abc+")
    trained(pat / "seed_2", 180000, None)
    trained(base / "equal/swin_t-res18/kd/seed_0", 200, None, exit_code=1)
    trained(base / "published/swin_t-res18/kd/seed_0", 200, 0.1)
    trained(base / "teacher/swin_t/seed_0", 270000, 0.451)
    # Trained by hand.
    log(base / "equal/swin_t-mbv2/none/seed_0", "20260101_000000", step(90))

    flags = ["--table", "coco", "--work-dir", tmp_path, "--collect"]
    output, code = reproduce(*flags)
    files = [tmp_path / "coco.md", tmp_path / "coco.csv"]
    first = [file.read_bytes() for file in files]
    assert code is None and first[0].decode() in output
    reproduce(*flags)
    assert [file.read_bytes() for file in files] == first

    with open(files[1]) as file:
        rows = {(row["pair"], row["method"], row["settings"]): row for row in csv.DictReader(file)}
    assert len(rows) == 1 + 2 * 28
    row = rows["swin_t-res18", "pat", "equal"]
    assert (row["mAP"], row["mAP std"], row["AP50"], row["seeds"]) == ("35.4", "0.4", "50.0", "0 1")
    assert row["difference"] == "-0.2" and row["published"] == "35.62 / 56.67 / 38.04"
    assert row["length"] == "180000 iterations" and row["seconds"] == "54000"
    assert (row["hardware"], row["revision"]) == ("GPU x 4; GPU x 8", "abc; abc+")
    assert row["status"] == "seed 2: 180000/180000"
    row = rows["swin_t-res18", "kd", "equal"]
    assert row["mAP"] == row["seeds"] == row["difference"] == row["hardware"] == ""
    assert row["status"] == "seed 0: 200/200 failed"
    row = rows["swin_t-res18", "kd", "published"]
    assert (row["mAP"], row["mAP std"], row["length"]) == ("10.0", "", "200 iterations")
    assert rows["swin_t", "teacher", ""]["difference"] == "-0.0"
    assert rows["swin_t-mbv2", "none", "equal"]["status"] == "seed 0: 90/180000"
    untouched = rows["swin_t-mbv2", "pat", "equal"]
    assert [key for key, value in untouched.items() if value] == [
        "pair", "method", "settings", "published",
    ]  # fmt: skip
    assert "| swin_t-res18 | pat | equal | 35.4 ± 0.4 | 50.0 ± 0.0 |" in first[0].decode()
    assert "none (student alone)" in output and "settings `published`" in output


def test_evaluation_without_result(tmp_path, reproduce):
    folder = tmp_path / "digits/equal" / PAIR / "kd/seed_0"
    trained(folder, 2, None)
    log(folder, "20260101_000001", {"time": 0.1, "step": 2})
    output, _ = reproduce("--table", "digits", "--work-dir", tmp_path, "--collect")
    assert "| seed 0: evaluated without a coco/bbox_mAP |" in output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--table is needed; known tables: coco"),
        (
            ["--table", "voc"],
            "unknown table 'voc'; known tables: coco, cifar100, imagenet, cifar10",
        ),
        (["--table", "digits", "--cells", "*/pta"], "'*/pta' matches no cell of table 'digits'"),
        (["--table", "digits", "--gpus", "2"], "--gpus needs --launcher"),
        (["--table", "digits", "--launcher", "slurm"], "need each other"),
        (["--table", "digits", "--launcher", "slurm", "--partition", "p"], "srun"),
        (["--table", "digits", "--launcher", "pytorch", "--gpus", "3"], "cannot be divided"),
        (["--table", "digits", "--launcher", "pytorch", "--jobs", "2"], "--jobs needs"),
        (["--table", "digits", "--jobs", "0"], "at least 1"),
        (["--table", "digits", "--teacher-checkpoint", "nowhere.pth"], "'nowhere.pth' does not"),
        (["--table", "digits", "--cfg-options", "seed"], "key=value, not 'seed'"),
        (["--table", "bccd", "--cfg-options", "data_root=nowhere/"], "voc2coco.py"),
        (["--table", "coco", "--cfg-options", "data_root=nowhere/"], "cocodataset.org"),
    ],
)
def test_bad_input_gives_one_clear_line(args, message, tmp_path, reproduce, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    _, code = reproduce(*args, "--work-dir", tmp_path / "work")
    assert code.startswith("error: ") and message in code and "\n" not in code


def test_unknown_cells_are_told_the_known_ones():
    with pytest.raises(ValueError, match="its cells: swin_p/teacher, swin_p-res18/none, "):
        find_table("digits").select(["*", "swin_p-res18"])


def test_records_are_plain_json(tmp_path):
    trained(tmp_path, 2, 0.5)
    assert json.loads((tmp_path / "run.json").read_text())["length"] == [2, "iter"]
