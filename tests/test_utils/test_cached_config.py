import copy
import json
import textwrap

import pytest
import torch
from helpers.tools import ROOT, run_tool
from mmengine.config import Config
from mmengine.config import config as mmengine_config

from pat_mmdet.utils.cached_config import CachedConfig


@pytest.fixture
def formatted(monkeypatch):
    """The texts that yapf was given."""
    texts = []
    format_code = mmengine_config.FormatCode

    def record(text, **kwargs):
        texts.append(text)
        return format_code(text, **kwargs)

    monkeypatch.setattr(mmengine_config, "FormatCode", record)
    return texts


def test_text_is_formatted_once(formatted, tmp_path):
    plain = Config(dict(model=dict(type="A", sizes=[1, 2]), work_dir=None))
    cfg = CachedConfig.from_config(plain)
    text = cfg.pretty_text
    cfg.dump(tmp_path / "config.py")
    assert cfg.pretty_text == copy.deepcopy(cfg).pretty_text == text
    assert (tmp_path / "config.py").read_text() == text
    assert len(formatted) == 1
    assert plain.pretty_text == text


@pytest.mark.parametrize("value", [2, 1.0, True, "1", None])
def test_change_is_seen(value):
    cfg = CachedConfig.from_config(Config(dict(model=dict(sizes=[dict(width=1)]))))
    before = cfg.pretty_text
    cfg.model.sizes[0].width = value
    assert cfg.pretty_text == Config(cfg.to_dict()).pretty_text != before


def test_attributes_of_cached_config(tmp_path):
    (tmp_path / "a.py").write_text("a = dict(b=1)\n")
    plain = Config.fromfile(tmp_path / "a.py")
    cfg = CachedConfig.from_config(plain)
    assert (cfg.filename, cfg.text, cfg.a.b) == (plain.filename, plain.text, 1)


@pytest.mark.slow
def test_training_formats_once(digits, tmp_path):
    """At the start and for two checkpoints, and all of them have the config as mmengine has it."""
    code = """
        import json, sys
        from mmengine.config import config
        from pat_mmdet.cli.train import main
        calls, format_code = [], config.FormatCode
        config.FormatCode = lambda *args, **kwargs: calls.append(1) or format_code(*args, **kwargs)
        main()
        print(json.dumps(len(calls)))
    """
    options = [
        f"data_root={digits}/", "train_cfg.max_iters=2", "train_cfg.val_interval=2",
        "train_dataloader.batch_size=2", "default_hooks.checkpoint.interval=1",
    ]  # fmt: skip
    config = ROOT / "configs/students/faster-rcnn_r18_fpn_digits.py"
    script, work_dir = tmp_path / "train.py", tmp_path / "out"
    script.write_text(textwrap.dedent(code))
    output = run_tool(script, config, "--work-dir", work_dir, "--cfg-options", *options)
    assert json.loads(output.splitlines()[-1]) == 1
    (dumped,) = work_dir.glob("*.py")
    text = dumped.read_text()
    assert Config.fromfile(dumped).pretty_text == text
    assert [file.read_text() for file in work_dir.glob("*/vis_data/config.py")] == [text]
    for step in (1, 2):
        meta = torch.load(work_dir / f"iter_{step}.pth", weights_only=True)["meta"]
        assert meta["cfg"] == text
