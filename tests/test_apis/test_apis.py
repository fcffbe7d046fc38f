"""The functions that a program calls."""

import json
import re
import subprocess
import sys

import pytest
import torch
from helpers.tools import ROOT
from mmdet.apis import inference_detector
from mmengine.config import Config
from mmengine.config import config as mmengine_config
from torch import nn

from pat_mmdet import apis
from pat_mmdet.utils import load_config
from pat_mmdet.utils.errors import ConfigError

PAIR = "pat/swin_p-res18_digits.py"


def test_import_without_torch():
    code = "import sys; from pat_mmdet import apis; print(apis.list_methods(), *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    methods, _, imported = done.stdout.partition("] ")
    assert f"{methods}]" == str(apis.list_methods()), done.stderr
    assert not {"torch", "mmengine.runner"} & set(imported.split())


def test_listed_names_are_known():
    names = apis.list_configs()
    assert {PAIR, "teachers/swin_t_cifar100.py"} <= set(names)
    assert not [name for name in names if "_base_" in name]
    digits = apis.list_configs("*digits*")
    assert digits == [name for name in names if "digits" in name] and len(digits) == 3
    assert apis.list_configs("digits") == []
    assert {"pat", "pat_fast", "kd", "none"} <= set(apis.list_methods())
    # It names all that it knows.
    with pytest.raises(ConfigError, match=f"methods: {', '.join(apis.list_methods())}$"):
        load_config("pat/swin_t-res18_cifar100.py", method="?")


@pytest.fixture(scope="module")
def options(digits):
    return {
        "data_root": f"{digits}/",
        "train_cfg.max_iters": 2,
        "train_cfg.val_interval": 2,
        "train_dataloader.batch_size": 2,
        "train_dataloader.num_workers": 0,
        "train_dataloader.persistent_workers": False,
        "val_dataloader.num_workers": 0,
        "val_dataloader.persistent_workers": False,
        "test_dataloader.num_workers": 0,
        "test_dataloader.persistent_workers": False,
        "default_hooks.checkpoint.interval": 1,
        "default_hooks.logger.interval": 1,
        "model.input_size": (64, 64),
        "model.teacher_checkpoint": None,
        "randomness.seed": 1,
    }


@pytest.fixture(scope="module")
def formatted():
    """The texts that MMEngine gives to yapf during :func:`trained`."""
    return []


@pytest.fixture(scope="module")
def trained(options, digits, formatted, tmp_path_factory):
    """The runner and the work dir of a training with another method than the config's."""
    folder = tmp_path_factory.mktemp("apis") / "run"
    options = {key: value for key, value in options.items() if key != "data_root"}
    format_code = mmengine_config.FormatCode

    def record(text, **kwargs):
        formatted.append(text)
        return format_code(text, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mmengine_config, "FormatCode", record)
        return apis.distill(PAIR, "kd", folder, options, data=digits), folder


def test_config_is_formatted_once(trained, formatted):
    """At the start and for two checkpoints, and all of them have the config as MMEngine has it."""
    _, folder = trained
    assert len(formatted) == 1
    (dumped,) = folder.glob("*.py")
    text = dumped.read_text()
    assert Config.fromfile(dumped).pretty_text == text
    assert [file.read_text() for file in folder.glob("*/vis_data/config.py")] == [text]
    for step in (1, 2):
        meta = torch.load(folder / f"iter_{step}.pth", weights_only=True)["meta"]
        assert meta["cfg"] == text


def test_distill(trained, options, digits):
    runner, folder = trained
    assert (runner.iter, runner.cfg.model.method.type) == (2, "KD")
    assert runner.work_dir == str(folder) and (folder / "iter_2.pth").is_file()
    # The config of a run has the data that were found.
    written = load_config(str(folder / PAIR.split("/")[1]))
    assert written.val_evaluator == load_config(PAIR, {"data_root": f"{digits}/"}).val_evaluator
    assert written.train_dataloader == runner.cfg.train_dataloader
    options = {**options, "train_cfg.max_iters": 3, "train_cfg.val_interval": 3}
    resumed = apis.distill(PAIR, "kd", folder, options, resume=True)
    # It goes on from the first one, and logs into its own folder.
    for run, steps in ((runner, [1, 2]), (resumed, [3])):
        log = (folder / run.timestamp / "vis_data/scalars.json").read_text()
        entries = map(json.loads, log.splitlines())
        assert [entry["step"] for entry in entries if "loss" in entry] == steps


def test_load_student(trained, tmp_path):
    runner, folder = trained
    expected = {
        key: value
        for key, value in runner.model.state_dict().items()
        if not key.startswith("distill.")
    }
    torch.save(dict(state_dict=expected), tmp_path / "weights.pth")
    apis.export(None, folder / "iter_2.pth", tmp_path / "student.pth")
    sources = [(folder / "iter_2.pth",), (tmp_path / "student.pth",)]
    sources += [(tmp_path / "weights.pth", PAIR)]
    for source in sources:
        student = apis.load_student(*source)
        assert type(student).__name__ == "FasterRCNN" and not student.training
        # Plain layers, which `torch.ao.quantization.quantize_dynamic` knows.
        kinds = {type(module) for module in student.modules() if isinstance(module, nn.Linear)}
        assert kinds == {nn.Linear}
        state = student.state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(state[key], expected[key]) for key in expected)
        assert list(student.dataset_meta["classes"]) == list("0123456789")
    image = next(iter(runner.train_dataloader.dataset.load_data_list()))["img_path"]
    assert inference_detector(student, image).pred_instances.bboxes.shape[1] == 4
    with pytest.raises(ValueError, match=r"has no config inside; .*, as config=\.\.\. in Python"):
        apis.load_student(tmp_path / "weights.pth")
    with pytest.raises(FileNotFoundError, match="has no checkpoint"):
        apis.load_student(tmp_path)


def test_export_to_an_unknown_file(trained, tmp_path):
    _, folder = trained
    with pytest.raises(ValueError, match=r"'.*student\.pt' must end with \.pth or"):
        apis.export(PAIR, folder / "iter_2.pth", tmp_path / "student.pt")


def test_compare(trained, options, tmp_path):
    _, folder = trained
    out = tmp_path / "page.html"
    apis.compare(PAIR, [f"KD={folder}"], out, 2, with_teacher=False, cfg_options=options)
    data = json.loads(re.search(r'id="data">(.*?)</script>', out.read_text(), re.DOTALL)[1])
    assert [network["name"] for network in data["networks"]] == ["KD"]
    assert len(data["images"]) == 2
