import pytest

from pat_mmdet.utils import load_config
from pat_mmdet.utils.paths import CONFIGS, find_config

NAME = "pat/swin_t-res18_coco.py"


@pytest.mark.parametrize("path", [NAME, f"configs/{NAME}", CONFIGS / NAME])
def test_configs_from_any_folder(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert find_config(path) == CONFIGS / NAME
    assert load_config(str(path), method="kd").model.method.type == "KD"


def test_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pat").mkdir()
    (tmp_path / NAME).write_text("mine = True\n")
    assert load_config(NAME).mine


def test_missing_config_is_named():
    with pytest.raises(FileNotFoundError, match=r"config 'pat/no\.py' does not exist, neither"):
        find_config("pat/no.py")
