import copy

import pytest
import timm
import torch
from helpers.configs import (
    CNNS,
    CONFIGS,
    LEAVES,
    OVERLAYS,
    PAIRS,
    PUBLISHED,
    TIMM_NAMES,
    build,
    cached,
    load,
    pair_name,
    read,
    shrink,
)
from mmengine.config import Config
from mmengine.optim import build_optim_wrapper
from mmengine.registry import HOOKS, MODELS, TRANSFORMS, init_default_scope

from pat_mmdet.registry import METHODS
from pat_mmdet.utils import apply_method, is_distiller, load_config, teacher_model

WITHOUT_EMA = ("none", "kd", "dkd", "dist", "ofa", "fitnet", "cc", "rkd", "crd")


def ema_of(cfg):
    """Momentum of the moving average, 0 without one."""
    hooks = [hook for hook in cfg.custom_hooks if hook.type == "StudentEMAHook"]
    assert len(hooks) == len(cfg.custom_hooks) <= 1
    if not hooks:
        return 0
    assert hooks[0].ema_type == "ExponentialMovingAverage" and hooks[0].update_buffers
    return HOOKS.build(copy.deepcopy(hooks[0])).ema_cfg["momentum"]


def test_configs_match_tables():
    expected = {pair_name(*pair) for pair in PAIRS}
    expected |= {f"students/{student}_{data}" for _, student, data in PAIRS}
    expected |= {f"teachers/{teacher}_{data}" for teacher, _, data in PAIRS}
    assert set(LEAVES) == expected


@pytest.mark.parametrize("name", LEAVES)
def test_training_settings(name):
    cfg = cached(name)
    assert cfg.custom_imports.imports == ["pat_mmdet"] and cfg.default_scope == "mmpretrain"
    # mmengine would give it to the model as an argument.
    assert "data_preprocessor" not in cfg
    assert cfg.train_cfg.type == "ResumableEpochBasedTrainLoop"
    assert cfg.train_cfg.max_epochs % cfg.train_cfg.val_interval == 0
    checkpoint = cfg.default_hooks.checkpoint
    assert (checkpoint.type, checkpoint.by_epoch) == ("SafeCheckpointHook", True)
    assert checkpoint.max_keep_ckpts >= 2
    assert cfg.default_hooks.visualization == dict(type="VisualizationHook", enable=False)
    assert cfg.visualizer.type == "UniversalVisualizer"
    assert cfg.log_processor.by_epoch and cfg.default_hooks.logger.log_metric_by_epoch
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size
    assert cfg.auto_scale_lr.enable is False
    warmup, schedule = cfg.param_scheduler
    assert warmup.type == "LinearLR" and warmup.convert_to_iter_based
    assert all(scheduler.by_epoch is True for scheduler in (warmup, schedule))
    if schedule.type == "CosineAnnealingLR":
        assert (schedule.begin, schedule.end) == (warmup.end, cfg.train_cfg.max_epochs)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == cfg.data_root
        pack = loader.dataset.pipeline[-1]
        assert pack == dict(type="PackInputs"), "its defaults have sample_idx, which CRD needs"
    assert cfg.val_dataloader.dataset.test_mode and cfg.test_dataloader.dataset.test_mode
    assert not cfg.train_dataloader.dataset.get("test_mode", False)
    assert cfg.val_evaluator == cfg.test_evaluator == dict(type="Accuracy", topk=(1, 5))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_parts_of_pair(pair):
    teacher_name, student_name, data = pair
    cfg = cached(pair_name(*pair))
    student = cached(f"students/{student_name}_{data}")
    teacher = cached(f"teachers/{teacher_name}_{data}")
    assert {key for key in cfg if key not in student or cfg[key] != student[key]} == {"model"}
    assert is_distiller(cfg) and cfg.model.type == "ClassificationDistiller"
    assert cfg.model.student == student.model
    assert {**cfg.model.teacher, "pretrained": None} == {**teacher.model, "pretrained": None}
    grid, dim, side = (2, 128, 32) if data == "cifar10" else (4, 512, 224)
    assert {**cfg.model.method} == dict(type="PAT", raa_grid=grid, raa_dim=dim)
    assert tuple(cfg.model.input_size) == (side, side)


@pytest.mark.parametrize("pair", PUBLISHED, ids="-".join)
def test_networks_of_the_published_pairs(pair):
    teacher_name, student_name, data = pair
    model = cached(pair_name(*pair)).model
    classes = dict(cifar100=100, imagenet=1000)[data]
    for name, network in ((teacher_name, model.teacher), (student_name, model.student)):
        assert network.type.endswith("TimmClassifier") and network.model_name == TIMM_NAMES[name]
        assert timm.is_model(network.model_name)
        assert network.get("num_classes", 1000) == network.data_preprocessor.num_classes == classes
        assert network.loss == dict(type="LabelSmoothLoss", label_smooth_val=0.1)
    assert model.student.pretrained is False
    if data == "cifar100":
        teacher = teacher_model(model.teacher, model.teacher_checkpoint)
        assert teacher.pretrained is False, "all weights come from the checkpoint"
        assert cached(f"teachers/{teacher_name}_{data}").model.pretrained is True
        file = f"{TIMM_NAMES[teacher_name].split('.')[0]}_cifar100.pth"
        assert model.teacher_checkpoint == f"work_dirs/pretrained/{file}"
    else:
        assert model.teacher_checkpoint is None and model.teacher.pretrained is True
        # What timm says about the weights; the teacher gets its own normalisation.
        weights = timm.get_pretrained_cfg(model.teacher.model_name)
        preprocessor = model.teacher.data_preprocessor
        for own, published in ((preprocessor.mean, weights.mean), (preprocessor.std, weights.std)):
            assert own == pytest.approx([255 * value for value in published])
    assert ("batch_augments" in model.student.data_preprocessor) == (student_name not in CNNS)


def test_normalisation_of_cifar100():
    for student in {student for _, student, data in PAIRS if data == "cifar100"}:
        preprocessor = cached(f"students/{student}_cifar100").model.data_preprocessor
        mean, std = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
        assert preprocessor.mean == pytest.approx([255 * value for value in mean])
        assert preprocessor.std == pytest.approx([255 * value for value in std])
        assert preprocessor.to_rgb is False, "the archive's images are RGB"


# Optimizer, rate, weight decay, epochs, batch, warm-up epochs, its first rate, last rate, EMA.
SETTINGS = {
    ("cifar100", "cnn"): ("SGD", 0.05, 2e-3, 300, 128, 3, None, 1e-3, 2e-4),
    ("cifar100", "vit"): ("AdamW", 5e-4, 0.05, 300, 128, 20, 5e-7, 1e-5, 2e-4),
    ("cifar100", "teacher"): ("AdamW", 5e-5, 0.05, 300, 128, 20, 5e-8, 1e-6, 0),
    ("imagenet", "cnn"): ("SGD", 0.1, 1e-4, 100, 256, 3, None, None, 2e-4),
    ("imagenet", "vit"): ("AdamW", 5e-4, 0.05, 300, 512, 20, 5e-7, 1e-6, 4e-5),
}


@pytest.mark.parametrize("name", [leaf for leaf in LEAVES if not leaf.endswith("cifar10")])
def test_published_training_settings(name):
    folder, stem = name.split("/")
    network, data = stem.rsplit("_", 1)
    kind = "cnn" if network.split("-")[-1] in (*CNNS, "res50") else "vit"
    if folder == "teachers" and data == "cifar100":
        kind = "teacher"
    optimizer, rate, decay, epochs, batch, warmup, first, last, ema = SETTINGS[data, kind]
    cfg = cached(name)
    own = cfg.optim_wrapper.optimizer
    assert (own.type, own.lr, own.weight_decay) == (optimizer, rate, decay)
    assert (own.get("momentum"), own.get("nesterov")) == (
        (0.9, True) if kind == "cnn" else (None, None)
    )
    assert cfg.train_cfg.max_epochs == epochs
    assert cfg.train_dataloader.batch_size == batch
    linear, schedule = cfg.param_scheduler
    assert (linear.begin, linear.end) == (0, warmup)
    if first is not None:
        assert rate * linear.start_factor == pytest.approx(first)
    if last is not None:
        assert (schedule.type, schedule.eta_min) == ("CosineAnnealingLR", last)
    else:
        assert (schedule.type, schedule.gamma) == ("MultiStepLR", 0.1)
        assert schedule.milestones == [30, 60, 90]
    clip = cfg.optim_wrapper.get("clip_grad")
    assert clip is None if kind == "cnn" else clip.max_norm == 5.0
    assert ema_of(cfg) == pytest.approx(ema)
    augmentations = [step.type for step in cfg.train_dataloader.dataset.pipeline]
    crop, flip = (augmentations.index(kind) for kind in ("RandomResizedCrop", "RandomFlip"))
    assert flip == crop + 1
    strong = ["RandAugment", "ColorJitter", "RandomErasing"]
    assert augmentations[flip + 1 : -1] == ([] if kind == "cnn" else strong)


@pytest.mark.filterwarnings("ignore:Only use 'alpha'")
def test_strong_augmentation():
    for name in ("students/deit_t_cifar100", "students/deit_t_imagenet"):
        cfg = cached(name)
        steps = {step.type: step for step in cfg.train_dataloader.dataset.pipeline}
        augment = steps["RandAugment"]
        assert (augment.policies, augment.num_policies) == ("timm_increasing", 2)
        levels = (augment.magnitude_level, augment.magnitude_std, augment.total_level)
        assert levels == (9, 0.5, 10)
        jitter = steps["ColorJitter"]
        assert jitter.brightness == jitter.contrast == jitter.saturation == 0.4
        assert (steps["RandomErasing"].erase_prob, steps["RandomErasing"].mode) == (0.25, "rand")
        # In the channel order of the images, which only ImageNet's preprocessor turns round.
        preprocessor = cfg.model.data_preprocessor
        order = slice(None, None, -1 if preprocessor.to_rgb else 1)
        assert steps["RandomErasing"].fill_color == preprocessor.mean[order]
        assert steps["RandomErasing"].fill_std == preprocessor.std[order]
        assert augment.hparams.pad_val == [round(value) for value in preprocessor.mean[order]]
        mixing = [(mix.type, mix.alpha) for mix in preprocessor.batch_augments.augments]
        assert mixing == [("Mixup", 0.8), ("CutMix", 1.0)]
        init_default_scope("mmpretrain")
        results = dict(img=torch.randint(256, (40, 50, 3)).numpy().astype("uint8"), gt_label=3)
        results["sample_idx"] = 17
        for step in cfg.train_dataloader.dataset.pipeline:
            if step.type != "LoadImageOrSkip":
                results = TRANSFORMS.build(step)(results)
        assert results["inputs"].shape == (3, 224, 224)
        assert results["data_samples"].sample_idx == 17


@pytest.mark.parametrize("method", [name for name in OVERLAYS if name not in ("mgd", "cwd", "pkd")])
def test_published_settings_of_cifar100(method):
    student = "res18" if method in ("pat", "none", "ofa", "cc", "crd") else "resmlp_s12"
    name = pair_name("swin_t", student, "cifar100")
    published = read(name, None, method, "published")
    assert ema_of(published) == pytest.approx(0 if method in WITHOUT_EMA else 2e-4)
    assert (method in WITHOUT_EMA) == (not method.startswith("pat"))
    assert {key for key in published if published[key] != cached(name)[key]} <= {
        "settings",
        "model",
        "custom_hooks",
    }


def test_published_settings_of_imagenet():
    name = pair_name("deit_t", "res18", "imagenet")
    equal, published = (read(name, None, "ofa", name_) for name_ in ("equal", "published"))
    assert (ema_of(equal), ema_of(published)) == (pytest.approx(2e-4), 0)
    assert (equal.model.method.eps, published.model.method.eps) == (1, 1.5)
    assert ema_of(read(name, None, None, "published")) == pytest.approx(2e-4)
    other = read(pair_name("swin_t", "res18", "imagenet"), None, "ofa", "published")
    assert ema_of(other) == 0 and other.model.method.eps == 1
    name = pair_name("swin_t", "resmlp_s12", "imagenet")
    assert ema_of(read(name, None, "ofa", "published")) == pytest.approx(4e-5)


@pytest.mark.parametrize("pair", [PAIRS[0], PAIRS[12], PAIRS[-1]], ids="-".join)
def test_method_none(pair):
    cfg = load(pair_name(*pair))
    apply_method(cfg, "none")
    assert cfg._cfg_dict == cached(f"students/{pair[1]}_{pair[2]}")._cfg_dict


def overlay_of(method):
    """The overlay of a method for classification, or for both tasks."""
    places = [CONFIGS / f"_base_/methods/{folder}{method}.py" for folder in ("classification/", "")]
    return Config.fromfile(next(place for place in places if place.is_file())).method


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        ("pat", dict(raa_grid=4, raa_dim=512)),
        ("pat_fast", dict(raa_grid=4, raa_dim=512, afp_stages=(2, 3), prompted_share=0.5)),
        ("pat_raa", dict(raa_grid=4, raa_dim=512, afp_stages=())),
        ("pat_spatial", dict(raa_grid=4, raa_dim=512, prompt="spatial")),
        ("pat_plus", dict(raa_grid=4, raa_dim=512, region_weight=10.0)),
        ("dkd", dict(alpha=1.0, beta=2.0)),
        ("ofa", dict(branch="stages", eps=1.0)),
        ("rkd", dict(max_rows=None)),
    ],
)
def test_arguments_for_classification(method, arguments):
    overlay = overlay_of(method)
    assert {key: overlay[key] for key in arguments} == arguments


@pytest.mark.parametrize("method", [name for name in OVERLAYS if name != "none"])
def test_overlay_applies(method, pair=PAIRS[12]):
    cfg, plain = load(pair_name(*pair)), cached(pair_name(*pair))
    overlay = overlay_of(method)
    apply_method(cfg, method)
    if overlay.type == "PAT":
        # Over the pair's own settings of PAT, a variant changes what sets it apart.
        pat = overlay_of("pat")
        apart = {key: value for key, value in overlay.items() if value != pat.get(key)}
        assert {**cfg.model.method} == {**plain.model.method, **apart}
    else:
        assert {**cfg.model.method} == {**overlay}
    assert cfg.model.method.type in METHODS
    assert {key for key in cfg if cfg[key] != plain[key]} <= {"model"}
    assert {**cfg.model, "method": None} == {**plain.model, "method": None}


def test_crd_num_data():
    counts = dict(cifar100=50000, imagenet=1281167, cifar10=20000)
    for data, count in counts.items():
        pair = next(pair for pair in PAIRS if pair[2] == data)
        assert read(pair_name(*pair), None, "crd").model.method.num_data == count
        own = read(pair_name(*pair), {"model.method.num_data": 7}, "crd")
        assert own.model.method.num_data == 7, "the command line wins"
    # Of a pair with published settings of its own, and trained with these.
    cfg = read(pair_name("deit_t", "res18", "imagenet"), None, "crd", "published")
    assert cfg.model.method.num_data == 1281167 and ema_of(cfg) == 0


def test_own_images_in_cifar10_config():
    options = dict(data_root="mine/", classes=("cat", "dog"))
    cfg = read(pair_name("tinyvit_mini", "res18_mini", "cifar10"), options)
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == "mine/"
        assert loader.dataset.metainfo.classes == ("cat", "dog")
    student, teacher = cfg.model.student, cfg.model.teacher
    assert student.head.num_classes == student.data_preprocessor.num_classes == 2
    assert cfg.val_evaluator.topk == cfg.test_evaluator.topk == (1,)
    assert teacher.num_classes == teacher.data_preprocessor.num_classes == 2


@pytest.mark.parametrize("data", ["cifar100", "imagenet"])
def test_data_of_another_place(data):
    cfg = read(f"students/res18_{data}", dict(data_root="mine/"))
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == "mine/"


def test_path_of_teacher_checkpoint():
    teacher = cached("teachers/tinyvit_mini_cifar10")
    for student in {student for _, student, data in PAIRS if data == "cifar10"}:
        model = cached(pair_name("tinyvit_mini", student, "cifar10")).model
        expected = f"work_dirs/tinyvit_mini_cifar10/epoch_{teacher.train_cfg.max_epochs}.pth"
        assert model.teacher_checkpoint == expected


# ------------------------------------------------------------------------------ networks


@pytest.mark.parametrize(
    "name",
    [path for path in LEAVES if path.startswith("students/") and path.endswith("_cifar100")]
    + ["students/res18_imagenet", "students/mbv2_imagenet"],
)
def test_weight_decay_equals_timm(name):
    cfg = shrink(load(name))
    model = build(cfg)
    optimizer = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper)).optimizer
    decay = {
        id(param): group["weight_decay"]
        for group in optimizer.param_groups
        for param in group["params"]
    }
    network, usual = model.model, cfg.optim_wrapper.optimizer.weight_decay
    listed = getattr(network, "no_weight_decay", set)()
    for name, param in network.named_parameters():
        free = param.ndim <= 1 or name in listed
        assert decay[id(param)] == (0 if free else usual), name


def test_pretrained_weights_are_kept(tmp_path):
    """mmengine would have timm draw them anew."""
    small = dict(depth=4, embed_dim=24, num_heads=2, img_size=32)
    made = timm.create_model("deit_tiny_patch16_224", num_classes=10, **small)
    torch.save(made.state_dict(), tmp_path / "deit.pth")
    cfg = load_config("configs/pat/deit_t-res18_imagenet.py", {"model.teacher.pretrained": False})
    own = dict(num_classes=10, checkpoint_path=str(tmp_path / "deit.pth"), **small)
    cfg.model.teacher.update(own)
    cfg.model.student = {**cfg.model.teacher}
    cfg.model.input_size = (32, 32)
    init_default_scope("mmpretrain")
    model = MODELS.build(cfg.model)
    model.init_weights()
    for network in (model.student, model.teacher):
        state = network.state_dict()
        assert all(torch.equal(state[key], value) for key, value in made.state_dict().items())
