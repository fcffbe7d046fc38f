import copy

import pytest
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
