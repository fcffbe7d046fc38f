"""What the data loader of a config yields."""

import json
import os
import sys

import pytest
from helpers.tools import ROOT, run_tool

TOOL = "analysis_tools/benchmark_dataloader.py"
CONFIG = "configs/students/faster-rcnn_r18_fpn_digits.py"


def test_benchmark(digits, tmp_path):
    file = tmp_path / "new/result.json"
    output = run_tool(
        TOOL, CONFIG, "--max-iter", 5, "--num-warmup", 2, "--json", file, "--cfg-options",
        f"data_root={digits}/", "train_dataloader.batch_size=3", cwd=ROOT,
    )  # fmt: skip
    result = json.loads(file.read_text())
    assert (result["batch_size"], result["num_workers"]) == (3, 1)
    assert (result["batches"], result["images"]) == (5, 15)
    assert result["images_per_second"] == pytest.approx(15 / result["seconds"])
    assert result["ms_per_batch"] == pytest.approx(result["seconds"] / 5 * 1000)
    assert "batches of 3, 1 workers" in output
    assert f"{result['images_per_second']:.1f} images a second" in output


def test_slow_loader(digits, tmp_path):
    (tmp_path / "config.py").write_text(
        f"""
_base_ = {str(ROOT / CONFIG)!r}
custom_imports = dict(imports=["pat_mmdet", "slow"])
load = dict(type="LoadImageOrSkip")
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(pipeline=[load, dict(type="Slow"), dict(type="PackDetInputs")]),
)
"""
    )
    (tmp_path / "slow.py").write_text(
        """
import time

from mmengine.registry import TRANSFORMS


@TRANSFORMS.register_module()
class Slow:
    def __call__(self, results):
        time.sleep(0.1)
        return results
"""
    )
    file = tmp_path / "result.json"
    run_tool(
        TOOL, tmp_path / "config.py", "--max-iter", 4, "--num-warmup", 1, "--json", file,
        "--cfg-options", f"data_root={digits}/",
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
    )  # fmt: skip
    result = json.loads(file.read_text())
    assert result["seconds"] >= 8 * 0.1 and result["ms_per_batch"] >= 200


def test_config_without_training_data(tmp_path):
    config = tmp_path / "none.py"
    config.write_text("model = dict()")
    output = run_tool(TOOL, config, code=1)
    error = f"error: config '{config}' has no train_dataloader; give that of a training\n"
    assert output == error
