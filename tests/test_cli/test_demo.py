"""The demo, from a training to the export, at small size."""

import os
import re
import sys

import pytest
import torch
from helpers.configs import load
from helpers.runs import evaluation, log, step
from helpers.tools import ROOT, keep_handlers, load_tool, run_tool
from mmengine.registry import MODELS, init_default_scope

from pat_mmdet.cli import demo
from pat_mmdet.deploy import OnnxDetector


@pytest.fixture
def run(monkeypatch, capfd):
    """Runs the demo in this process; gives its output, and what it exits with."""
    monkeypatch.chdir(ROOT)

    def run(*args):
        monkeypatch.setattr(sys, "argv", ["demo.py", *map(str, args)])
        code = None
        try:
            demo.main()
        except SystemExit as stop:
            code = stop.code
        return capfd.readouterr().out, code

    with keep_handlers():
        yield run


def save(config, folder):
    """Saves a network as a training of two steps leaves it."""
    cfg = load(config)
    init_default_scope("mmdet")
    torch.manual_seed(0)  # scores of some weights lie so close that the exported network swaps them
    log(folder, "20260101_000000", step(2), {**evaluation(2, 0.1), "coco/bbox_mAP_50": 0.2})
    meta = dict(cfg=cfg.pretty_text)
    state = MODELS.build(cfg.model).state_dict()
    torch.save(dict(meta=meta, state_dict=state), folder / "iter_2.pth")


def test_demo(digits, tmp_path, run, monkeypatch):
    base, folder = tmp_path / "digits", tmp_path / "seed_0"
    save("teachers/faster-rcnn_swin-p_fpn_digits", base / "teacher/swin_p/seed_0")
    for method in ("none", "fitnet"):
        target = base / f"equal/swin_p-res18/{method}/seed_0"
        save("students/faster-rcnn_r18_fpn_digits", target)
    commands = []

    def run_command(name, *args):
        commands.append(name)
        if name == "benchmark-latency":  # exports the teacher too, which takes a minute
            monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
            return f"{load_tool('analysis_tools/benchmark_latency.py').parse_args()}"
        # In a fork, where nothing has to be imported anew.
        return run_tool(ROOT / "pat_mmdet/__main__.py", name, *args)

    monkeypatch.setattr(demo, "run_command", run_command)
    monkeypatch.setattr(demo.reproduce, "PROGRESS_INTERVAL", 1)
    options = [
        f"data_root={digits}/", "train_cfg.max_iters=2", "train_dataloader.batch_size=2",
        "default_hooks.logger.interval=1",
    ]  # fmt: skip
    flags = ["--work-dir", tmp_path, "--cfg-options", *options]
    first, code = run(*flags)
    assert code is None, (first, code)
    assert first.count("done already") == 3 and first.count(": training, logs in") == 1
    assert "pat_plus seed 0: 0/2 iterations" in first
    assert commands == ["compare", "export", "benchmark-latency"]
    assert "| student alone | 10.0 | 20.0 |  | 2 iterations | 2 s |" in first
    assert re.search(r"\| pat_plus \| [\d.]+ \|.* \| 2 iterations \| \d+ s \|", first)
    assert "evaluate=True" in first
    page = (folder / "compare.html").read_text()
    assert re.findall(r'"name": ?"([^"]+)", ?"color"', page) == list(demo.NAMES.values())
    assert (folder / "compare.html").as_uri() in first
    lines = re.findall(r"^    (from pat_mmdet.*|boxes, .*)$", first, re.MULTILINE)
    found = {}
    exec("\n".join(lines), found)
    assert found["OnnxDetector"] is OnnxDetector and found["boxes"].shape[1] == 4

    os.utime(folder / "student.onnx", (0, 0))  # as one that is older than the training
    monkeypatch.setattr(demo, "run_command", lambda name, *args: commands.append(name) or "")
    again, _ = run(*flags)
    assert again.count("done already") == 6 and commands[3:] == ["export"]
    assert first[first.index("| network") : first.index("[demo] done, in")] in again
    _, code = run(*flags, "train_cfg.val_interval=1")
    assert code.startswith("error: ") and "holds a training with options" in code


def test_failing_command_ends_the_demo():
    with pytest.raises(SystemExit, match=r"(?s)invalid choice: 'nothing'.*nothing failed, see"):
        demo.run_command("nothing")


def test_missing_package(run, monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "PACKAGES", ("torch", "nowhere"))
    _, code = run("--work-dir", tmp_path)
    assert code == "error: the demo needs nowhere: pip install -e .[demo]"
