"""Configs in checkpoints, read as data."""

import pytest
from helpers.tools import ROOT

from pat_mmdet.utils import load_config
from pat_mmdet.utils.config_text import parse_config_text


@pytest.mark.parametrize(
    "name",
    ["pat/swin_t-res18_coco", "pat/tinyvit_mini-res18_mini_cifar10", "students/mbv2_cifar100"],
)
def test_text_gives_the_config(name):
    cfg = load_config(str(ROOT / f"configs/{name}.py"))
    cfg.more = {"a.b": dict(c=-1.5e-3), 3: [(), {"x": None}], "d": {"e-f": (True,)}}
    assert parse_config_text(cfg.pretty_text).to_dict() == cfg.to_dict()


@pytest.mark.parametrize(
    "text",
    [
        "import os",
        "a = open('x', 'w')",
        "a = dict(b=__import__('os').system('true'))",
        "a = b",
        "a.b = 1",
        "a = (",
        "model = dict(backbone=[dict(type='os.system', command='true')])",
        "model = dict(type='torch.load', f='x.pth')",
        "model = dict(type='mmengine.Config.fromstring', cfg_str='a = 1', file_format='.py')",
        "model = dict(type='mmengine.load', file='x.pkl')",
    ],
)
def test_nothing_is_run(text):
    with pytest.raises(ValueError, match=r"config in the checkpoint .* give the path of a config"):
        parse_config_text(text)
    assert parse_config_text("a = dict(type='mmdet.ResNet')").a.type == "mmdet.ResNet"
