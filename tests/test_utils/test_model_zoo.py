"""Teachers by their names in the model zoos of MMDetection and mmpretrain."""

import pytest
import torch
from helpers.tools import ROOT

from pat_mmdet.utils import load_config, read_checkpoint, teacher_model
from pat_mmdet.utils.config import check_config
from pat_mmdet.utils.errors import ConfigError
from pat_mmdet.utils.model_zoo import find_model, list_weights

NAME = "mask-rcnn_swin-t-p4-w7_fpn_1x_coco"
COCO = "pat/swin_t-res18_coco.py"


SWIN = "swin-tiny_16xb64_in1k"
CIFAR = "pat/tinyvit_mini-res18_mini_cifar10.py"


@pytest.mark.parametrize(
    ("config", "key", "name", "checkpoint", "type_"),
    [
        (COCO, "model.teacher", NAME, f"mmdet://{NAME}", "MaskRCNN"),
        (COCO, "model.teacher.config", NAME, f"mmdet://{NAME}", "MaskRCNN"),
        (CIFAR, "model.teacher", SWIN, f"mmpretrain://{SWIN}", "ImageClassifier"),
    ],
)
def test_name_gives_config_and_weights(config, key, name, checkpoint, type_):
    head = "roi_head.bbox_head" if type_ == "MaskRCNN" else "head"
    classes = len(load_config(config).classes)
    options = {key: name, f"model.teacher.{head}.num_classes": classes}
    cfg = load_config(config, options)
    assert cfg.model.teacher.type == type_ and cfg.model.teacher_checkpoint == checkpoint
    cfg = load_config(config, {**options, "model.teacher_checkpoint": None})
    assert cfg.model.teacher.type == type_ and cfg.model.teacher_checkpoint is None


def test_weights_by_name(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = list_weights("mmdet")[NAME]
    file = tmp_path / "checkpoints" / url.rpartition("/")[2]
    file.parent.mkdir()
    torch.save(dict(state_dict=dict(x=torch.ones(1))), file)
    for source in (f"mmdet://{NAME}", url):
        assert read_checkpoint(source)["state_dict"]["x"] == 1
    with pytest.raises(ValueError, match=rf"no model '{NAME[:-1]}'; similar names: .*{NAME}"):
        read_checkpoint(f"mmdet://{NAME[:-1]}")


def test_names():
    model = find_model(NAME.upper())
    assert model.config.name == f"{NAME}.py" and model.config.is_file()
    assert find_model("no_such_model") is None
    with pytest.raises(FileNotFoundError, match=rf"did you mean .*{NAME}"):
        teacher_model(NAME.replace("fpn", "fpm"), None)
    with pytest.raises(FileNotFoundError, match=r"mmdet and mmpretrain; check the path"):
        load_config(COCO, {"model.teacher": "no/such/file.py"})


def test_name_in_a_users_config(tmp_path):
    path = tmp_path / "mine.py"
    text = f"_base_ = {str(ROOT / 'configs' / COCO)!r}\nmodel = dict(teacher=dict(_delete_=True, "
    path.write_text(f"{text}config={NAME!r}), teacher_checkpoint='mmdet://{NAME}')\n")
    cfg = load_config(str(path))
    assert cfg.model.teacher.type == "MaskRCNN"
    check_config(cfg)
    # The weights of the base are those of another schedule, and would fit.
    path.write_text(f"{text}config={NAME!r}))\n")
    with pytest.raises(ConfigError, match=rf"of another model .*set it to 'mmdet://{NAME}'"):
        load_config(str(path))
