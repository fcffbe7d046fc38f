"""The tool that shows what PAT's student can follow and what its prompts change."""

import json

import pytest
from helpers.tools import ROOT, load_tool, run_tool
from PIL import Image


def test_figure_of_forms_with_and_without_prompts(tmp_path):
    plain = dict(explained=[0.1, 0.2])
    prompted = dict(
        plain,
        explainable=[0.5, 1.0],
        distance=[2.0, 1.0],
        irreducible=[0.5, 0.0],
        energy=[0.9, 0.5],
        drift=[0.1, 0.2],
        agreement=0.7,
    )
    records = {
        "pat": [dict(prompted, step=1), dict(prompted, step=11)],
        "pat_plus": [dict(plain, step=1), dict(plain, step=11)],
    }
    load_tool("analysis_tools/analyze_pat.py").plot(records, tmp_path / "new/figure.png")
    with Image.open(tmp_path / "new/figure.png") as image:
        assert image.size == (800, 960)
        assert len(set(image.convert("L").resize((80, 96)).getdata())) > 20


@pytest.mark.full
def test_tool_trains_what_is_not_done_and_draws(tmp_path, digits):
    command = [
        "analysis_tools/analyze_pat.py", ROOT / "configs/pat/swin_p-res18_digits.py",
        "--methods", "pat_fast", "pat_plus", "--work-dir", tmp_path, "--interval", 2,
        "--cfg-options", f"data_root={digits}/", "model.teacher_checkpoint=None",
        "model.input_size=(64,64)", "train_cfg.max_iters=3", "train_cfg.val_interval=3",
        "train_dataloader.batch_size=2",
    ]  # fmt: skip
    run_tool(*command)
    records = json.loads((tmp_path / "pat_statistics.json").read_text())
    assert [record["step"] for record in records["pat_plus"]] == [1, 3]
    assert {len(record["energy"]) for record in records["pat_fast"]} == {4}
    assert (tmp_path / "pat_statistics.png").stat().st_size > 10_000
    assert "Iter(train)" not in run_tool(*command), "what is done is not trained again"
