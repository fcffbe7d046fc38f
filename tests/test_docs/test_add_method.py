"""The method of CONTRIBUTING.md, run as its reader would."""

import json
import re

from helpers.tools import ROOT, run_tool


def test_method_of_the_guide(digits, tmp_path, monkeypatch):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    method, config = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my_methods.py").write_text(method)
    base = str(ROOT / "configs/pat/swin_p-res18_digits.py")
    (tmp_path / "mine.py").write_text(re.sub(r'(?<=_base_ = )".*"', repr(base), config))
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{tmp_path}", prepend=":")
    run_tool(
        "train.py", "mine.py", "--work-dir", "out", "--cfg-options", f"data_root={digits}/",
        "model.teacher_checkpoint=None", "train_cfg.max_iters=2", "train_dataloader.batch_size=2",
        "default_hooks.logger.interval=1", "model.input_size=(64,64)",
        cwd=tmp_path,
    )  # fmt: skip
    (log,) = tmp_path.glob("out/*/vis_data/scalars.json")
    first = json.loads(log.read_text().splitlines()[0])
    assert first["loss_fd"] > 0 and first["loss"] > first["loss_fd"]
