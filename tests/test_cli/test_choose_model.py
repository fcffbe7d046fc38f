"""The network that ``test --teacher`` evaluates, where the teacher is the path of a config file."""

from argparse import Namespace

import pytest
from helpers.detectors import PAIR
from helpers.tools import ROOT

from pat_mmdet.cli.test import choose_model
from pat_mmdet.utils import load_config


def chosen(path, checkpoint):
    cfg = load_config(str(ROOT / PAIR))
    cfg.model.teacher, cfg.model.teacher_checkpoint = path, checkpoint
    args = Namespace(teacher=True, checkpoint=None, config=PAIR)
    return cfg, choose_model(cfg, args)


def test_teacher_of_a_path():
    cfg, checkpoint = chosen("teachers/faster-rcnn_swin-p_fpn_digits.py", "teacher.pth")
    assert checkpoint == "teacher.pth" and cfg.model.type == "FasterRCNN"
    with pytest.raises(ValueError, match="teacher_checkpoint is None"):
        chosen("teachers/faster-rcnn_swin-p_fpn_digits.py", None)


def test_pretrained_teacher_of_a_path():
    cfg, checkpoint = chosen("teachers/vit_s_cifar100.py", None)
    assert checkpoint is None and cfg.model.pretrained
    cfg, checkpoint = chosen("teachers/vit_s_cifar100.py", "vit.pth")
    assert checkpoint == "vit.pth" and not cfg.model.pretrained
