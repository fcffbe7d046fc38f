"""The tool that draws what a trained pair does."""

import torch
from helpers.detectors import PAIR, build, pair_config
from helpers.tools import ROOT, run_tool
from PIL import Image

TOOL = "analysis_tools/visualize_pat.py"


def test_figures_of_a_detector(digits, tmp_path):
    model, checkpoint = build(pair_config()), tmp_path / "iter_1.pth"
    torch.save(model.state_dict(), checkpoint)
    printed = run_tool(
        TOOL, ROOT / PAIR, tmp_path, "--baseline", checkpoint, "--num-images", 4, "--image", 2,
        "--out-dir", tmp_path / "new/figures", "--cfg-options", f"data_root={digits}/",
        "model.teacher_checkpoint=None", "model.input_size=(64,64)",
    )  # fmt: skip
    files = sorted((tmp_path / "new/figures").iterdir())
    assert [file.name for file in files] == ["attention.png", "cka.png", "prompts.png"]
    assert all(f"[visualize] {file}\n" in printed for file in files)
    for file in files:
        with Image.open(file) as image:
            assert image.width == 760 and len(set(image.convert("L").getdata())) > 50


def test_config_without_a_teacher(tmp_path):
    config = ROOT / "configs/students/faster-rcnn_r18_fpn_digits.py"
    printed = run_tool(TOOL, config, tmp_path, code=1)
    assert printed.endswith(f"error: config '{config}' has no teacher; take one of configs/pat\n")
