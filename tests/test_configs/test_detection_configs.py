import copy
from pathlib import Path

import pytest
import torch
from helpers.detectors import PAIR, batch, build, train_step, trainable
from helpers.tools import ROOT
from mmengine.config import Config, ConfigDict
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS

from pat_mmdet.registry import METHODS, build_method
from pat_mmdet.utils import apply_method, is_distiller, load_config, student_model

CONFIGS = ROOT / "configs"
LEAVES = sorted(
    str(path.relative_to(CONFIGS))
    for folder in ("pat", "students", "teachers")
    for path in (CONFIGS / folder).glob("*.py")
    if path.stem.endswith(("_coco", "_digits", "_bccd"))
)
CIFAR10_PAIR = "configs/pat/tinyvit_mini-res18_mini_cifar10.py"
# To be copied for data of one's own.
CUSTOM = "pat/swin_t-res18_custom.py"
COCO_PAIRS = ("pat/swin_t-res18_coco.py", "pat/swin_t-mbv2_coco.py")
PARTS = {
    "pat/swin_t-res18_coco.py": (
        "teachers/faster-rcnn_swin-t_fpn_3x_coco.py",
        "students/faster-rcnn_r18_fpn_180k_coco.py",
    ),
    "pat/swin_t-mbv2_coco.py": (
        "teachers/faster-rcnn_swin-t_fpn_3x_coco.py",
        "students/faster-rcnn_mbv2_fpn_180k_coco.py",
    ),
    "pat/swin_t-res18_retinanet_coco.py": (
        "teachers/retinanet_swin-t_fpn_3x_coco.py",
        "students/retinanet_r18_fpn_180k_coco.py",
    ),
    "pat/swin_t_faster-rcnn-res18_retinanet_coco.py": (
        "teachers/faster-rcnn_swin-t_fpn_3x_coco.py",
        "students/retinanet_r18_fpn_180k_coco.py",
    ),
    "pat/swin_p-res18_digits.py": (
        "teachers/faster-rcnn_swin-p_fpn_digits.py",
        "students/faster-rcnn_r18_fpn_digits.py",
    ),
    "pat/swin_p-mbv2_bccd.py": (
        "teachers/faster-rcnn_swin-p_fpn_bccd.py",
        "students/faster-rcnn_mbv2_fpn_bccd.py",
    ),
}
# The pair whose heads cannot be compared.
CROSS_PAIR = "pat/swin_t_faster-rcnn-res18_retinanet_coco.py"
# What a pair trains is not trained again alone: `test_parts_of_pair` compares the two configs.
STEPPED = [name for name in (*LEAVES, CUSTOM) if not name.startswith("students/")]
OVERLAYS = sorted(path.stem for path in (CONFIGS / "_base_/methods").glob("*.py"))


def load(name, *args):
    return load_config(str(CONFIGS / name), *args)


def dicts(node):
    """Every dict inside a config."""
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, (list, tuple)):
        for item in node:
            yield from dicts(item)


def shrink(cfg):
    """Takes out pretrained weights, and makes a step on a small image cheap."""
    for node in dicts(cfg.model):
        init = node.get("init_cfg")
        if isinstance(init, dict) and init.get("type") == "Pretrained":
            node.pop("init_cfg")
        if "fc_out_channels" in node:
            node.fc_out_channels = 32
        if "rpn_proposal" in node:
            node.rpn_proposal.update(nms_pre=60, max_per_img=20)
            node.rcnn.sampler.num = 16
    if is_distiller(cfg):
        cfg.model.teacher_checkpoint = None
        cfg.model.input_size = (64, 96)
    return cfg


def optimizer_of(cfg, model):
    """The config's optimizer, without mixed precision, which the CPU does not have."""
    wrapper = copy.deepcopy(cfg.optim_wrapper)
    wrapper.type = "OptimWrapper"
    wrapper.pop("loss_scale", None)
    return build_optim_wrapper(model, wrapper).optimizer


def snapshot(module):
    return {
        name: value.clone() for name, value in (*module.named_parameters(), *module.named_buffers())
    }


@pytest.mark.parametrize("name", STEPPED)
def test_config_builds_and_steps(name):
    cfg = shrink(load(name))
    model = build(cfg)
    data = batch(model, [(3, 64, 96), (3, 60, 90)], num_classes=len(cfg.classes))
    optimizer = optimizer_of(cfg, model)
    trained = trainable(model)
    optimized = {id(param) for group in optimizer.param_groups for param in group["params"]}
    assert {id(param) for param in trained.values()} <= optimized
    teacher = snapshot(model.teacher) if is_distiller(cfg) else {}
    start = {key: param.detach().clone() for key, param in trained.items()}

    for _ in range(2):
        losses = train_step(model, data, optimizer)
        for key, value in losses.items():
            for item in value if isinstance(value, list) else [value]:
                assert torch.isfinite(item).all(), key
    assert trainable(model).keys() == trained.keys(), "frozen or released by a step"
    for key, param in trained.items():
        assert param.grad is not None, f"{key} gets no gradient"
        assert torch.isfinite(param.grad).all(), key
    moved = [key for key, param in trained.items() if not torch.equal(param, start[key])]
    assert len(moved) > 0.9 * len(trained)

    if not is_distiller(cfg):
        return
    assert {"loss_fd", "loss_reg", "loss_cls", "loss_bbox"} <= set(losses)
    assert ("loss_kd" in losses) is (name != CROSS_PAIR)
    assert ("loss_rpn_bbox" in losses) is hasattr(model.student, "rpn_head")
    assert not any(module.training for module in model.teacher.modules())
    after = snapshot(model.teacher)
    assert after.keys() == teacher.keys()
    assert all(torch.equal(after[key], value) for key, value in teacher.items())
    for param in model.teacher.parameters():
        assert id(param) not in optimized and not param.requires_grad and param.grad is None

    state = model.state_dict()
    student = MODELS.build(cfg.model.student).state_dict()
    assert set(student) <= set(state)
    rest = set(state) - set(student)
    assert rest and all(key.startswith("distill.") for key in rest)
    assert not any("teacher" in key for key in state)
    held = {
        param.untyped_storage().data_ptr()
        for param in (*model.teacher.parameters(), *model.teacher.buffers())
        if param.numel()
    }
    assert not held & {value.untyped_storage().data_ptr() for value in state.values()}
    if name in COCO_PAIRS:
        assert len(model.distill.aligners) == 5
        assert len(model.distill.raa(model.student.extract_feat(data["inputs"]))) == 5
        assert sorted(model.distill.prompts) == ["0", "1", "2", "3"]


@pytest.mark.parametrize("name", [COCO_PAIRS[0], CROSS_PAIR, "pat/swin_p-mbv2_bccd.py"])
def test_config_round_trip(name):
    cfg = load(name)
    again = Config.fromstring(cfg.pretty_text, ".py")
    assert again.model == cfg.model
    assert again.to_dict() == cfg.to_dict()


def test_every_pair_is_listed_here():
    assert sorted(PARTS) == [name for name in LEAVES if name.startswith("pat/")]
    students = {student for _, student in PARTS.values()}
    assert students == {name for name in LEAVES if name.startswith("students/")}


@pytest.mark.parametrize("name", PARTS)
def test_parts_of_pair(name):
    cfg = load(name)
    teacher, student = (load(part) for part in PARTS[name])
    assert cfg.model.type == "DetectionDistiller"
    assert cfg.model.teacher == teacher.model
    assert cfg.model.student == student.model == student_model(cfg)
    assert cfg.optim_wrapper == student.optim_wrapper
    assert cfg.param_scheduler == student.param_scheduler
    assert cfg.train_dataloader == student.train_dataloader
    assert cfg.val_evaluator == teacher.val_evaluator
    assert cfg.classes == teacher.classes
    assert "teacher_checkpoint" in cfg.model
    # The pairs on small data weigh the losses otherwise.
    weights = {} if "coco" in name else {"fd_weight": 0.02}
    if name == CROSS_PAIR:
        weights["kd_weight"] = 0.0
    assert {**cfg.model.method} == {"type": "PAT", **weights}
    if not cfg.model.teacher_checkpoint.startswith("https:"):
        # What the config of the teacher writes at its end.
        folder = f"work_dirs/{Path(PARTS[name][0]).stem}"
        assert cfg.model.teacher_checkpoint == f"{folder}/iter_{teacher.train_cfg.max_iters}.pth"


@pytest.mark.parametrize("name", LEAVES)
def test_training_settings(name):
    cfg = load(name)
    assert cfg.custom_imports.imports == ["pat_mmdet"]
    assert cfg.default_scope == "mmdet"
    assert cfg.train_cfg.type == "ResumableIterBasedTrainLoop"
    checkpoint = cfg.default_hooks.checkpoint
    assert checkpoint.type == "SafeCheckpointHook" and checkpoint.max_keep_ckpts >= 2
    assert checkpoint.by_epoch is False
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 8
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.type == "CheckedCocoDataset"
        assert loader.dataset.pipeline[0].type == "LoadImageOrSkip"
    assert cfg.val_dataloader.dataset.test_mode and cfg.test_dataloader.dataset.test_mode
    assert not cfg.train_dataloader.dataset.get("test_mode", False)
    for schedule in cfg.param_scheduler:
        assert schedule.by_epoch is False
        assert schedule.get("end", 0) <= cfg.train_cfg.max_iters
        assert max(schedule.get("milestones", [0])) < cfg.train_cfg.max_iters
    assert cfg.train_cfg.max_iters % checkpoint.interval == 0, "the last step has a checkpoint"
    assert cfg.train_cfg.max_iters % cfg.train_cfg.val_interval == 0


def check_coco_data(cfg):
    assert len(cfg.classes) == 80
    resize, flip = cfg.train_dataloader.dataset.pipeline[2:4]
    assert resize.type == "RandomChoiceResize" and resize.keep_ratio
    assert sorted(tuple(sorted(scale)) for scale in resize.scales) == [
        (side, 1333) for side in (640, 672, 704, 736, 768, 800)
    ]
    assert (flip.type, flip.prob) == ("RandomFlip", 0.5)
    test_resize = cfg.test_dataloader.dataset.pipeline[1]
    assert sorted(test_resize.scale) == [800, 1333] and test_resize.keep_ratio


def check_five_levels(model):
    assert model.neck.num_outs == 5
    assert model.neck.out_channels == model.rpn_head.in_channels == 256
    assert model.rpn_head.anchor_generator.strides == [4, 8, 16, 32, 64]
    assert model.roi_head.bbox_roi_extractor.featmap_strides == [4, 8, 16, 32]
    assert len(model.backbone.out_indices) == len(model.neck.in_channels) == 4
    assert model.roi_head.bbox_head.num_classes == 80
    assert model.train_cfg.rcnn.sampler.num == 512
    assert model.backbone.init_cfg.type == "Pretrained"


def check_retinanet(model):
    assert model.neck.num_outs == 5 and model.neck.add_extra_convs == "on_input"
    assert model.bbox_head.anchor_generator.strides == [8, 16, 32, 64, 128]
    first = model.backbone.out_indices[model.neck.start_level]
    assert first == 1, "the neck begins at P3"
    assert len(model.backbone.out_indices) == len(model.neck.in_channels)
    assert model.bbox_head.num_classes == 80


def check_schedule(cfg, iters, milestones):
    assert cfg.train_cfg.max_iters == iters
    (steps,) = [item for item in cfg.param_scheduler if item.type == "MultiStepLR"]
    assert (steps.milestones, steps.gamma) == (milestones, 0.1)
    assert cfg.optim_wrapper.type == "AmpOptimWrapper"
    (ema,) = [hook for hook in cfg.custom_hooks if hook.type == "StudentEMAHook"]
    assert ema.ema_type == "ExponentialMovingAverage" and ema.update_buffers
    assert ema.momentum == pytest.approx(0.001)
    assert HOOKS.build(ema).ema_cfg["momentum"] == pytest.approx(0.001)


@pytest.mark.parametrize("name", COCO_PAIRS)
def test_settings_of_the_coco_pairs(name):
    cfg = load(name)
    check_coco_data(cfg)
    check_schedule(cfg, 180000, [120000, 160000])
    assert cfg.optim_wrapper.optimizer == dict(
        type="SGD", lr=0.01, momentum=0.9, weight_decay=0.0001
    )
    check_five_levels(cfg.model.student)
    check_five_levels(cfg.model.teacher)
    backbone = cfg.model.student.backbone
    assert backbone.norm_cfg == dict(type="BN", requires_grad=False) and backbone.norm_eval
    assert tuple(cfg.model.input_size) == (800, 1216)
    method = build_method(cfg.model.method)
    assert (method.feedback, method.kd_weight, method.fd_weight) == ("previous", 1, 1)
    assert method.reg_weight == method.temperature == method.prompted_share == 1
    assert cfg.model.teacher_checkpoint.startswith("https://download.openmmlab.com/mmdetection/")


def test_settings_of_the_retinanet_pairs():
    pair, cross = (load(name) for name in PARTS if "retinanet" in name)
    for cfg in (pair, cross):
        check_coco_data(cfg)
        check_schedule(cfg, 180000, [120000, 160000])
        check_retinanet(cfg.model.student)
    check_retinanet(pair.model.teacher)
    check_five_levels(cross.model.teacher)
    assert tuple(cross.model.feature_strides) == (8, 16, 32, 64)


def test_published_settings():
    pair = str(CONFIGS / COCO_PAIRS[1])
    equal = load_config(pair)
    published = load_config(pair, settings="published")
    assert (equal.settings, published.settings) == ("equal", "published")
    assert published.train_cfg.max_iters == 270000
    assert published.param_scheduler[1].milestones == [210000, 250000]
    changed = {key for key in equal if equal[key] != published[key]}
    assert changed == {"settings", "train_cfg", "param_scheduler"}
    assert load_config(pair, None, "fitnet", "published").train_cfg == equal.train_cfg
    shorter = load_config(pair, {"train_cfg.max_iters": 7}, settings="published")
    assert shorter.train_cfg.max_iters == 7, "the command line wins"
    assert load_config(pair, None, "dkd").model.method.alpha == 1
    assert load_config(pair, None, "none", "published").settings == "published"

    pair = str(CONFIGS / COCO_PAIRS[0])
    equal, published = (load_config(pair, None, "ofa", name) for name in ("equal", "published"))
    assert (equal.optim_wrapper.optimizer.lr, equal.model.method.kd_weight) == (0.01, 1)
    assert (published.optim_wrapper.optimizer.lr, published.model.method.kd_weight) == (0.001, 0)
    with pytest.raises(ValueError, match="unknown settings 'same'; known: equal, published"):
        load_config(pair, settings="same")


def test_settings_of_dumped_config(tmp_path):
    load_config(str(CONFIGS / COCO_PAIRS[0]), None, "ofa", "published").dump(tmp_path / "all.py")
    again = load_config(str(tmp_path / "all.py"))
    assert again.settings == "published" and again.optim_wrapper.optimizer.lr == 0.001
    changed = load_config(str(tmp_path / "all.py"), {"model.method.kd_weight": 0.5})
    assert changed.model.method.kd_weight == 0.5


def test_settings_of_the_coco_teacher():
    cfg = load("teachers/faster-rcnn_swin-t_fpn_3x_coco.py")
    check_coco_data(cfg)
    check_schedule(cfg, 270000, [210000, 250000])
    check_five_levels(cfg.model)
    optimizer = cfg.optim_wrapper.optimizer
    assert (optimizer.type, optimizer.lr, optimizer.weight_decay) == ("AdamW", 0.0001, 0.05)
    assert "momentum" not in optimizer
    backbone = cfg.model.backbone
    assert backbone.drop_path_rate == 0.2
    assert (backbone.embed_dims, backbone.depths, backbone.window_size) == (96, [2, 2, 6, 2], 7)


def test_coco_teacher_weight_decay():
    cfg = shrink(load("teachers/faster-rcnn_swin-t_fpn_3x_coco.py"))
    cfg.model.backbone.update(embed_dims=12, depths=[1, 1, 1, 1])
    cfg.model.neck.in_channels = [12, 24, 48, 96]
    model = build(cfg)
    groups = optimizer_of(cfg, model).param_groups
    decay = {id(param): group["weight_decay"] for group in groups for param in group["params"]}
    free = {name for name, param in trainable(model).items() if decay[id(param)] == 0}
    expected = {
        name
        for name in trainable(model)
        if "norm" in name or "relative_position_bias_table" in name
    }
    assert free == expected and len(free) > 10


# What sets the named forms of PAT apart.
PAT_FORMS = {
    "pat_fast": ("afp_stages", "prompted_share"),
    "pat_plus": (
        "alignment",
        "distance",
        "afp_stages",
        "fd_weight",
        "inherit_heads",
    ),
    "pat_raa": ("afp_stages",),
    "pat_spatial": ("prompt",),
}


@pytest.mark.parametrize("name", OVERLAYS)
def test_overlay_applies_to_the_digits_pair(name):
    overlay = Config.fromfile(CONFIGS / f"_base_/methods/{name}.py")
    assert list(overlay) == ["method"], "an overlay defines its method alone"
    cfg = load_config(str(ROOT / PAIR), None, name)
    plain = load_config(str(ROOT / PAIR))
    changed = {key for key in plain if plain[key] != cfg[key]}
    if name == "none":
        assert changed == {"model"}
        assert cfg.model == load(PARTS["pat/swin_p-res18_digits.py"][1]).model
        assert not is_distiller(cfg)
        return
    assert changed <= {"model"}
    if name == "pat":
        assert changed == set(), "the pair keeps its own settings of its own method"
    elif name.startswith("pat"):
        apart = {key: overlay.method[key] for key in PAT_FORMS[name]}
        assert {**cfg.model.method} == {**plain.model.method, **apart}
    else:
        assert {**cfg.model.method} == {**overlay.method}
    assert {**cfg.model, "method": None} == {**plain.model, "method": None}
    assert overlay.method.type in METHODS


def test_crd_is_for_classification():
    small = {"model.input_size": (64, 64), "model.teacher_checkpoint": None}
    with pytest.raises(ValueError, match=r"CRD keeps a memory .*--method rkd or cc"):
        build(load_config(str(ROOT / PAIR), small, "crd"))


@pytest.mark.parametrize("method", [name for name in OVERLAYS if name not in ("none", "crd")])
def test_every_method_trains(method):
    model = build(shrink(load("pat/swin_p-mbv2_bccd.py", None, method)))
    data = batch(model, [(3, 64, 96), (3, 60, 90)], num_classes=3)
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1e-3)
    for _ in range(2):
        losses = train_step(model, data, optimizer)
    own = [key for key in losses if key not in ("loss_cls", "loss_bbox") and "rpn" not in key]
    assert [key for key in own if key.startswith("loss_")]
    for name, param in trainable(model).items():
        assert param.grad is not None and torch.isfinite(param.grad).all(), name
    assert all(param.grad is None for param in model.teacher.parameters())


def test_options_win_over_the_overlay():
    options = {"model.method.temperature": 4.0, "model.input_size": (96, 64)}
    model = load_config(str(ROOT / PAIR), options, "kd").model
    assert (model.method.type, model.method.temperature) == ("KD", 4.0)
    assert tuple(model.input_size) == (96, 64)
    assert "fd_weight" not in model.method, "nothing is left of the method that was there before"


def test_apply_method_with_old_input_size():
    cfg = load_config(str(ROOT / PAIR))
    cfg.model.method.input_size = cfg.model.pop("input_size")
    apply_method(cfg, "fitnet")
    assert cfg.model.method.type == "FitNet"
    assert tuple(cfg.model.method.input_size) == (128, 128)


def test_user_overlays(tmp_path):
    path = tmp_path / "configs/mine.py"
    own, above = tmp_path / "configs/_base_/methods", tmp_path / "_base_/methods/detection"
    own.mkdir(parents=True)
    above.mkdir(parents=True)
    path.write_text(f"_base_ = {str(ROOT / PAIR)!r}\n")
    (own / "mine.py").write_text("method = dict(type='KD', temperature=9.0)\n")
    (own / "fitnet.py").write_text("method = dict(type='FitNet', fd_weight=7.0)\n")
    (above / "theirs.py").write_text("method = dict(type='KD', temperature=8.0)\n")

    def method(name):
        return load_config(str(path), None, name).model.method

    assert method("mine").temperature == 9 and method("theirs").temperature == 8
    assert method("fitnet").fd_weight == 7, "the user's own goes first"
    assert method("kd").temperature == 1
    with pytest.raises(ValueError, match=r"unknown method 'x'; known methods: .*mine.*pkd.*theirs"):
        method("x")


@pytest.mark.parametrize(("pair", "alpha"), [(PAIR, 3.0), (CIFAR10_PAIR, 4.0)])
def test_user_overlay_with_task_arguments(tmp_path, pair, alpha):
    (tmp_path / "_base_/methods").mkdir(parents=True)
    (tmp_path / "mine.py").write_text(f"_base_ = {str(ROOT / pair)!r}\n")
    (tmp_path / "_base_/methods/dkd.py").write_text(
        "method = dict(type='DKD', detection=dict(alpha=3.0), classification=dict(alpha=4.0))\n"
    )
    method = load_config(str(tmp_path / "mine.py"), None, "dkd").model.method
    assert {**method} == dict(type="DKD", alpha=alpha)


def test_unknown_method_lists_the_known_ones():
    cfg = load_config(str(ROOT / PAIR))
    with pytest.raises(ValueError, match="unknown method 'pta'; known methods: ") as error:
        apply_method(cfg, "pta")
    assert str(error.value).split("known methods: ")[1].split(", ") == OVERLAYS
    assert {"fitnet", "kd", "none", "pat"} <= set(OVERLAYS)


def test_method_without_teacher():
    with pytest.raises(ValueError, match=r"r18_fpn_digits.py' has no teacher.*configs/pat"):
        load("students/faster-rcnn_r18_fpn_digits.py", None, "kd")


def test_is_distiller():
    assert is_distiller(load(COCO_PAIRS[0]))
    assert not is_distiller(load("students/faster-rcnn_r18_fpn_digits.py"))
    assert isinstance(student_model(load(COCO_PAIRS[0])), ConfigDict)
