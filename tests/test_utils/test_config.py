import importlib
import pickle
from types import SimpleNamespace

import pytest
import torch
from helpers.detectors import PAIR
from helpers.tools import ROOT
from mmengine.registry import MODELS, Registry, init_default_scope

from pat_mmdet.registry import build_method
from pat_mmdet.utils import check_data, load_config, prepare_environment, set_work_dir
from pat_mmdet.utils import config as config_module
from pat_mmdet.utils.errors import clear_errors

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


SAFETY = ("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD")


@pytest.fixture(autouse=True)
def restored_environment(monkeypatch):
    """Puts the variables back that a test may change."""
    for name in SAFETY:
        monkeypatch.setenv(name, "0")
        monkeypatch.delenv(name)


def pair(**options):
    return load_config(str(ROOT / PAIR), options)


def coco(**options):
    return load_config(str(ROOT / "configs/pat/swin_t-res18_coco.py"), options)


@pytest.mark.parametrize("path", ["configs/pat/nothing.py", "configs/pat", ""])
def test_config_that_does_not_exist(path):
    with pytest.raises(FileNotFoundError, match=rf"config {path!r} does not exist.*configs/"):
        load_config(path)


def test_options_of_a_users_own_data_reach_every_place():
    cfg = coco(data_root="my/data", classes=["left", "right", "both"])
    for name in ("train", "val", "test"):
        dataset = cfg[f"{name}_dataloader"].dataset
        assert dataset.data_root == "my/data"
        assert tuple(dataset.metainfo.classes) == ("left", "right", "both")
    assert cfg.val_evaluator.ann_file == "my/data/annotations/instances_val2017.json"
    assert cfg.test_evaluator.ann_file == "my/data/annotations/instances_val2017.json"
    for network in (cfg.model.student, cfg.model.teacher):
        assert network.roi_head.bbox_head.num_classes == 3
    assert "ann_file" not in cfg.model


def test_own_annotation_files_reach_the_evaluators():
    cfg = pair(
        **{
            "data_root": "my/data/",
            "val_dataloader.dataset.ann_file": "v.json",
            "test_dataloader.dataset.ann_file": "/abs/t.json",
        }
    )
    assert cfg.val_evaluator.ann_file == "my/data/v.json"
    assert cfg.test_evaluator.ann_file == "/abs/t.json"
    assert cfg.train_dataloader.dataset.ann_file == "annotations/train.json"
    assert cfg.model.teacher.roi_head.bbox_head.num_classes == 10


def test_classes_reach_a_model_without_teacher_and_the_method_none():
    path = str(ROOT / "configs/students/faster-rcnn_r18_fpn_digits.py")
    for cfg in (
        load_config(path, dict(classes=("a", "b"))),
        load_config(str(ROOT / PAIR), dict(classes=("a", "b")), "none"),
    ):
        assert cfg.model.roi_head.bbox_head.num_classes == 2
        assert cfg.val_dataloader.dataset.metainfo.classes == ("a", "b")


def test_other_options_are_applied():
    cfg = pair(**{"model.method.raa_grid": 3, "train_dataloader.batch_size": 2})
    assert cfg.model.method.raa_grid == 3 and cfg.train_dataloader.batch_size == 2


def test_config_without_data_is_left_alone(tmp_path):
    path = tmp_path / "model.py"
    path.write_text("model = dict(type='A', num_classes=5)\ntrain_dataloader = None\n")
    assert load_config(str(path)).model.num_classes == 5
    path.write_text(
        "data_root, classes = 'd/', ('x',)\nmodel = dict(heads=[dict(num_classes=5)])\n"
    )
    assert load_config(str(path)).model.heads[0].num_classes == 1


def test_a_single_class_from_the_command_line():
    # --cfg-options classes=person gives a string.
    cfg = pair(classes="person")
    assert cfg.train_dataloader.dataset.metainfo.classes == ("person",)
    assert cfg.model.student.roi_head.bbox_head.num_classes == 1


def test_several_evaluators(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        f"_base_ = {str(ROOT / PAIR)!r}\n"
        "val_evaluator = [dict(type='CocoMetric', ann_file='x', metric='bbox'),\n"
        "                 dict(type='DumpDetResults', out_file_path='y.pkl')]\n"
    )
    cfg = load_config(str(path), dict(data_root="my/"))
    assert cfg.val_evaluator[0].ann_file == "my/annotations/val.json"
    assert "ann_file" not in cfg.val_evaluator[1]


def test_work_dir_from_the_command_line_the_config_or_the_name():
    cfg = pair()
    set_work_dir(cfg, None)
    assert cfg.work_dir == "work_dirs/swin_p-res18_digits"
    cfg = pair(work_dir="mine/here")
    set_work_dir(cfg, None)
    assert cfg.work_dir == "mine/here"
    set_work_dir(cfg, "other")
    assert cfg.work_dir == "other"


@pytest.fixture
def printed(monkeypatch):
    messages = []
    monkeypatch.setattr(config_module, "print_log", lambda *args: messages.append(args))
    return messages


@NO_GPU
def test_without_gpu_mixed_precision_is_off(printed):
    cfg = coco(**{"optim_wrapper.dtype": "bfloat16"})
    prepare_environment(cfg, "none")
    assert cfg.launcher == "none"
    assert cfg.optim_wrapper.type == "OptimWrapper"
    assert set(cfg.optim_wrapper) == {"type", "optimizer"}
    assert cfg.optim_wrapper.optimizer.lr == 0.01
    ((message, logger, level),) = printed
    assert "full precision" in message and (logger, level) == ("current", 30)
    assert "model_wrapper_cfg" not in cfg


@NO_GPU
def test_without_gpu_and_mixed_precision_nothing_is_said(printed):
    cfg = pair()
    before = cfg.optim_wrapper.to_dict()
    prepare_environment(cfg, "none")
    assert cfg.optim_wrapper.to_dict() == before and not printed
    cfg.pop("optim_wrapper")
    prepare_environment(cfg, "none")


def test_folders_of_the_data_are_looked_for(tmp_path):
    cfg = pair()
    for root in (f"{tmp_path}/", ""):
        for split in ("train", "val", "test"):
            cfg[f"{split}_dataloader"].dataset.data_root = root
        check_data(cfg, "train", "val", "test")
    part = dict(type="CheckedCocoDataset", data_root="nowhere/")
    cfg.train_dataloader.dataset = dict(type="RepeatDataset", times=2, dataset=part)
    check_data(cfg, "val", "test")
    with pytest.raises(FileNotFoundError, match="'nowhere/' does not exist; put the data there"):
        check_data(cfg, "val", "train")


class Foreign:
    def __reduce__(self):
        return (print, ("foreign code ran",))


@pytest.mark.parametrize("gpu", [False, True])
def test_every_file_is_loaded_safely_from_then_on(gpu, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": {}, "extra": Foreign()}, path)
    prepare_environment(pair(), "none")
    for options in ({}, dict(weights_only=False)):
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, **options)
    assert "foreign code ran" not in capsys.readouterr().out


def test_with_gpu_mixed_precision_stays(printed, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    cfg = coco()
    prepare_environment(cfg, "pytorch")
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"
    assert cfg.optim_wrapper.loss_scale == "dynamic"
    assert cfg.env_cfg.dist_cfg.backend == "nccl" and cfg.launcher == "pytorch"
    assert "model_wrapper_cfg" not in cfg and not printed


def test_several_processes_without_gpu_are_joined_with_gloo(monkeypatch, printed):
    joined = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.distributed, "init_process_group", joined.append)
    cfg = pair()
    prepare_environment(cfg, "pytorch")
    assert joined == ["gloo"] == [cfg.env_cfg.dist_cfg.backend]
    assert cfg.model_wrapper_cfg.type == "MMDistributedDataParallel"
    assert cfg.model_wrapper_cfg.find_unused_parameters is False
    assert cfg.model_wrapper_cfg.broadcast_buffers is False


def ends_with(function):
    """The line that a tool ends with."""
    with pytest.raises(SystemExit) as stop, clear_errors():
        function()
    return stop.value.code


def test_our_errors_end_in_one_line():
    line = ends_with(lambda: load_config("nowhere.py"))
    assert line.startswith("error: config 'nowhere.py' does not exist") and "\n" not in line
    line = ends_with(lambda: build_method(dict(type="PTA")))
    assert line.startswith("error: unknown distillation method 'PTA'; known methods: ")


def test_our_errors_end_in_one_line_also_from_a_registry():
    registry = Registry("things", scope="pat_mmdet")

    @registry.register_module()
    class Thing:
        def __init__(self):
            load_config("nowhere.py")

    @registry.register_module()
    def wrapped():
        # As registries of older MMEngine versions do.
        try:
            Thing()
        except Exception as error:
            raise type(error)(f"class `Thing` in tests.py: {error}")  # noqa: B904

    expected = ends_with(lambda: load_config("nowhere.py"))
    assert ends_with(lambda: registry.build(dict(type="Thing"))) == expected
    assert ends_with(lambda: registry.build(dict(type="wrapped"))) == expected


def test_our_error_about_anothers_error_is_shown(tmp_path):
    path = tmp_path / "cut.pth"
    path.write_bytes(b"")
    cfg = pair(**{"model.teacher_checkpoint": str(path), "model.method.input_size": (64, 64)})

    def build():
        init_default_scope("mmdet")
        MODELS.build(cfg.model)

    assert ends_with(build).startswith(f"error: checkpoint {str(path)!r} (0 bytes) cannot be read")


def test_errors_of_others_keep_their_traceback():
    def fail(error):
        raise error

    for error in (ValueError("theirs"), FileNotFoundError("theirs"), KeyError("a"), RuntimeError()):
        with pytest.raises(type(error)) as caught, clear_errors():
            fail(error)
        assert caught.value is error
    # Raised by a library that our code calls.
    with pytest.raises(ValueError, match="invalid literal"), clear_errors():
        prepare_environment(SimpleNamespace(get=lambda key: int("no number")), "none")


def test_a_bug_in_our_code_that_is_no_such_error_keeps_its_traceback():
    with pytest.raises(AttributeError), clear_errors():
        set_work_dir(None, None)


def test_no_error_no_exit():
    with clear_errors():
        value = 3
    assert value == 3


@pytest.mark.parametrize("method", [None, "none"])
def test_compile_is_for_the_blocks_of_a_pair_or_the_whole_student(method, tmp_path):
    train = vars(importlib.import_module("pat_mmdet.cli.train"))
    cfg = load_config(str(ROOT / "configs/pat/swin_p-res18_digits.py"), None, method)
    flags = dict.fromkeys(("method", "settings", "resume"), None)
    flags |= dict.fromkeys(("amp", "auto_scale_lr"), False)
    args = SimpleNamespace(config="c.py", work_dir=str(tmp_path), compile=True, **flags)
    train["apply_flags"](cfg, args)
    assert (cfg.model.get("compile"), cfg.get("compile")) == (
        (None, True) if method else (True, None)
    )


def test_errors_of_the_tools_are_ours(monkeypatch, tmp_path):
    # --auto-scale-lr without a base batch size is refused in tools/train.py itself.
    train = vars(importlib.import_module("pat_mmdet.cli.train"))
    cfg = pair(work_dir=str(tmp_path))
    cfg.pop("auto_scale_lr")
    args = SimpleNamespace(
        config="c.py",
        work_dir=None,
        method=None,
        settings=None,
        amp=False,
        compile=False,
        auto_scale_lr=True,
        resume=None,
    )
    line = ends_with(lambda: train["apply_flags"](cfg, args))
    assert line.startswith("error: config 'c.py' does not say what batch")
