import importlib
import logging
from pathlib import Path

import pytest
from helpers.tools import ROOT
from mmengine.config import Config

from pat_mmdet.utils import load_config
from pat_mmdet.utils.config_check import check_arguments
from pat_mmdet.utils.data_check import check_data_settings
from pat_mmdet.utils.errors import ConfigError
from pat_mmdet.utils.run_check import check_run, notes
from pat_mmdet.utils.signatures import accepted_arguments

DETECTION = "configs/pat/swin_t-res18_coco.py"
CLASSIFICATION = "configs/pat/tinyvit_mini-res18_mini_cifar10.py"
# The key that is misspelt, and what is meant.
MISSPELT = {
    "optim_wraper.optimizer.lr": "optim_wrapper",
    "setings": "settings",
    "train_datloader.batch_size": "train_dataloader",
    "custom_hook": "custom_hooks",
    "load_form": "load_from",
    "model.teacher_chekpoint": "teacher_checkpoint",
    "model.input_siz": "input_size",
    "model.method.fd_wieght": "fd_weight",
    "model.student.neck.num_out": "num_outs",
    "model.student.roi_head.bbox_haed": "bbox_head",
    "model.student.roi_head.bbox_head.loss_cls.loss_wieght": "loss_weight",
    "model.student.rpn_head.anchor_generator.scale": "scales",
    "model.teacher.backbone.embed_dim": "embed_dims",
    "train_dataloader.batchsize": "batch_size",
    "train_dataloader.sampler.shufle": "shuffle",
    "train_dataloader.dataset.pipeline.3.probs": "prob",
    "val_evaluator.metrics": "metric",
    "train_cfg.max_iter": "max_iters",
    "optim_wrapper.optimizer.weight_deacy": "weight_decay",
    "optim_wrapper.clip_gard": "clip_grad",
    "param_scheduler.1.milestone": "milestones",
    "default_hooks.checkpoint.intervall": "interval",
    "custom_hooks.0.moment": "momentum",
    "randomness.sead": "seed",
    "env_cfg.cudnn_benchmarks": "cudnn_benchmark",
    "log_processor.windowsize": "window_size",
}
MISSPELT_TYPES = {
    "model.type": ("DetectionDistiler", "DetectionDistiller"),
    "model.method.type": ("PATT", "PAT"),
    "model.student.backbone.type": ("ResNett", "ResNet"),
    "train_dataloader.dataset.pipeline.3.type": ("RandomFlipp", "RandomFlip"),
    "val_evaluator.type": ("CocoMetrics", "CocoMetric"),
    "train_cfg.type": ("ResumableIterBasedLoop", "ResumableIterBasedTrainLoop"),
}
# Faults of MMDetection's own configs: keys that their classes refuse, and an unknown type.
BROKEN = (
    *("MOTChallengeMetrics", "force_grad_on_level", "StageCascadeRPNHead", "eval_mode"),
    *("paramwise_cfg._delete", "is a pickle"),
)


@pytest.mark.parametrize("key", MISSPELT)
def test_misspelt_key(key):
    with pytest.raises(ConfigError, match=rf"did you mean '{MISSPELT[key]}'\?") as error:
        load_config(str(ROOT / DETECTION), {key: 1})
    assert key.removesuffix(".optimizer.lr").removesuffix(".batch_size") in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", MISSPELT_TYPES)
def test_misspelt_type(key):
    written, meant = MISSPELT_TYPES[key]
    message = rf"{key}='{written}' is not known; did you mean '{meant}'\?"
    with pytest.raises(ConfigError, match=message):
        load_config(str(ROOT / DETECTION), {key: written})


@pytest.mark.parametrize(
    ("key", "near"),
    [
        ("model.student.head.in_channel", "in_channels"),
        ("model.teacher.pretraind", "pretrained"),
        ("model.student.head.loss.label_smooth_value", "label_smooth_val"),
        ("train_dataloader.dataset.pipeline.1.crop_ratio_rang", "crop_ratio_range"),
        ("val_evaluator.topks", "topk"),
    ],
)
def test_misspelt_key_of_a_classifier(key, near):
    with pytest.raises(ConfigError, match=rf"{key}: .*did you mean '{near}'\?"):
        load_config(str(ROOT / CLASSIFICATION), {key: 1})


@pytest.mark.parametrize(
    ("config", "key", "message"),
    [
        (DETECTION, "model.student.backbone.depth", "ResNet takes one of 18, 34, 50, 101, 152$"),
        (
            "configs/pat/efficientnet_lite0-vit_mini_cifar10_64px.py",  # mixes labels
            "model.student.data_preprocessor.num_classes",
            "train_dataloader.dataset has the 10",
        ),
        (
            "configs/students/vit_mini_cifar10_64px.py",
            "model.data_preprocessor.num_classes",
            "train_dataloader.dataset has the 10",
        ),
    ],
)
def test_value_that_does_not_fit(config, key, message):
    with pytest.raises(ConfigError, match=f"^{key}=19.*{message}"):
        load_config(str(ROOT / config), {key: 19})


def test_notes():
    own = dict(data_preprocessor=dict(mean=[0]))
    model = dict(student=own, teacher=own, teacher_checkpoint=None)
    cfg = dict(**own, model=model, randomness=dict(seed=None), train_cfg=dict(max_iters=5))
    cfg["param_scheduler"] = dict(type="MultiStepLR", by_epoch=False, milestones=[3, 8])
    cfg["train_cfg"]["by_epoch"] = False
    preprocessor, teacher, schedule = notes(cfg)
    assert preprocessor.startswith("data_preprocessor at the top has no effect")
    assert "random weights" in teacher and "milestones.1=8 lies after the end" in schedule
    cfg["randomness"]["seed"] = 0
    model["teacher"] = dict(type="TimmClassifier", model_name="resnet18")
    assert notes(cfg) == [schedule]


def test_misspelt_key_in_a_file(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(f"_base_ = {str(ROOT / DETECTION)!r}\nmodel = dict(method=dict(raa_gird=3))\n")
    with pytest.raises(ConfigError, match=r"model.method.raa_gird: PAT .* 'raa_grid'"):
        load_config(str(path))


def test_variables_of_the_user_are_legal(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        f"_base_ = {str(ROOT / DETECTION)!r}\n"
        "size = 3\n_classes = 4\ndata_root_of_val = 'a'\nwork_dir = data_root_of_val * size\n"
    )
    assert load_config(str(path)).size == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "size = 3\n",
            "size at the top of .*mine.py has no effect: nothing reads it; .*underscore",
        ),
        ("lr = 0.1\n_x = 2\n", "lr at the top of .*mine.py has no effect"),
        # The base has read its own.
        ("heads = dict(a=1)\n", "heads at the top of .*mine.py has no effect"),
    ],
)
def test_variable_that_nothing_reads(tmp_path, text, message):
    path = tmp_path / "mine.py"
    path.write_text(f"_base_ = {str(ROOT / 'configs/pat/swin_t-res18_custom.py')!r}\n{text}")
    with pytest.raises(ConfigError, match=message):
        load_config(str(path))


def test_option_without_effect():
    with pytest.raises(ConfigError, match="--cfg-options image_size has no effect: set the values"):
        load_config(str(ROOT / CLASSIFICATION), {"image_size": 64})


def test_unknown_key_lists_known_keys():
    with pytest.raises(ConfigError, match=r"KD has no argument 'xyz'; it takes .*temperature"):
        load_config(str(ROOT / DETECTION), {"model.method.xyz": 1}, "kd")


class Plain:
    def __init__(self, a, *rest, b=1):
        pass


class HandsOn(Plain):
    def __init__(self, c, **kwargs):
        super().__init__(kwargs.pop("d"), **kwargs)


class HandsOnTwice(HandsOn):
    def __init__(self, **kwargs):
        super(HandsOnTwice, self).__init__(**kwargs)  # noqa: UP008


class Uses(Plain):
    def __init__(self, e, **kwargs):
        self.options = kwargs


class Ignores(Plain):
    def __init__(self, f, **kwargs):
        super().__init__(f)


class SkipsOne(HandsOn):
    def __init__(self, **kwargs):
        super(HandsOn, self).__init__(**kwargs)


def function(g, **options):
    return options


@pytest.mark.parametrize(
    ("target", "keys", "others"),
    [
        (Plain, {"a", "b"}, "refused"),
        (HandsOn, {"a", "b", "c", "d"}, "refused"),
        (HandsOnTwice, {"a", "b", "c", "d"}, "refused"),
        (Uses, {"e"}, "used"),
        (Ignores, {"f"}, "ignored"),
        (SkipsOne, set(), "used"),
        (function, {"g"}, "used"),
        (len, {"obj"}, "refused"),
    ],
)
def test_what_a_class_takes(target, keys, others):
    accepted = accepted_arguments(target)
    assert set(accepted.arguments) == keys and accepted.others == others


def external(package, step):
    """Configs that MMDetection and mmpretrain ship, each ``step``-th."""
    folder = Path(importlib.import_module(package).__file__).parent / ".mim/configs"
    paths = [path for path in folder.rglob("*.py") if "_base_" not in path.parts]
    return sorted(paths)[::step]


@pytest.mark.parametrize("package", ["mmdet", "mmpretrain"])
def test_no_false_alarm_in_configs_of_others(package, request):
    importlib.import_module(f"{package}.utils").register_all_modules(init_default_scope=False)
    logging.getLogger("mmengine").setLevel(logging.ERROR)
    step = 5 if request.config.getoption("-m") == "full" else 20
    checked = 0
    for path in external(package, step):
        try:
            cfg = Config.fromfile(path)
        except Exception:  # some of them cannot be read
            continue
        try:
            check_arguments(cfg)
            check_run(cfg)
            check_data_settings(cfg)
        except ConfigError as error:
            assert any(fault in str(error) for fault in BROKEN), (path, error)
        checked += 1
    assert checked > 20
