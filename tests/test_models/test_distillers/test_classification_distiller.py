import copy
import itertools

import numpy as np
import pytest
import timm
import torch
from helpers.classifiers import (
    CLASSES,
    IMAGENET,
    MMPRETRAIN,
    batch,
    build,
    config,
    distiller,
    raw_batch,
    timm_classifier,
)
from helpers.detectors import train_step, trainable
from helpers.steps import observe_step
from mmengine.registry import MODELS
from mmengine.runner import load_checkpoint
from torch.utils._python_dispatch import TorchDispatchMode

from pat_mmdet.models.layers import MapAligner, MapBranch, TokenAligner, TokenBranch
from pat_mmdet.models.losses import dkd_loss, ofa_loss
from pat_mmdet.models.methods import RKD
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import NetworkOutputs

NAMES = tuple(sorted(METHODS.module_dict))
CROSS_PAIRS = {
    "map student": ("resnet18", "swin_tiny_patch4_window7_224"),
    "token student": ("deit_tiny_patch16_224", "convnext_tiny"),
}


def state_of(network):
    named = itertools.chain(network.named_parameters(), network.named_buffers())
    return {name: value.clone() for name, value in named}


def unchanged(network, before):
    return all(torch.equal(value, before[name]) for name, value in state_of(network).items())


def of_the_method(losses):
    return {name: value for name, value in losses.items() if name.startswith("loss_")}


def outputs_of(model, data):
    """The outputs of both networks in a step."""
    step = observe_step(model, data)
    return step.student, step.teacher


def calls_of(*modules):
    """A list for each module that grows at each of its calls."""
    calls = [[] for _ in modules]
    for module, seen in zip(modules, calls):
        module.register_forward_hook(lambda module, args, out, seen=seen: seen.append(args))
    return calls


def check_gradients(model):
    """Every parameter has a gradient, and one of use."""
    for name, param in trainable(model).items():
        assert param.grad is not None and torch.isfinite(param.grad).all(), name
        assert param.grad.any(), name


# Steps.


@pytest.mark.parametrize(("student", "teacher"), CROSS_PAIRS.values(), ids=CROSS_PAIRS)
@pytest.mark.parametrize("name", NAMES)
def test_two_training_steps(name, student, teacher):
    model = build(distiller(student, config(teacher, drop_path_rate=0.5), name))
    data = batch(model)
    before = state_of(model.teacher)
    start = next(model.student.parameters()).detach().clone()
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1e-2)
    passes, *_ = calls_of(model.student.model)
    for _ in range(2):
        losses = train_step(model, data, optimizer)
    assert len(passes) == 2, "the student runs once a step"
    assert all(torch.isfinite(value).all() for value in losses.values())
    check_gradients(model)
    assert not torch.equal(next(model.student.parameters()), start)
    assert unchanged(model.teacher, before)
    assert all(param.grad is None for param in model.teacher.parameters())
    assert not any(module.training for module in model.teacher.modules())

    # The method's losses alone reach the student from its first layer on.
    losses = of_the_method(model(**data, mode="loss"))
    assert losses and all(value.shape == () for value in losses.values())
    model.zero_grad(set_to_none=True)
    sum(losses.values()).backward()
    first = next(model.student.parameters())
    assert torch.count_nonzero(first.grad) > 0

    # Half precision, on the same networks.
    with torch.autocast("cpu", dtype=torch.bfloat16):
        halves = model(**data, mode="loss")
    total, _ = model.parse_losses(halves)
    model.zero_grad(set_to_none=True)
    total.backward()
    assert all(torch.isfinite(value).all() for value in halves.values())
    assert all(value.dtype == torch.float32 for value in of_the_method(halves).values())
    assert all(torch.isfinite(param.grad).all() for param in trainable(model).values())
    assert unchanged(model.teacher, before)


@pytest.mark.parametrize("student", ["mm resnet", "mm vit"])
def test_mmpretrain_classifiers_are_distilled(student):
    model = build(distiller(student, "mm mixer", "PAT"))
    before = state_of(model.teacher)
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1e-2)
    passes, *_ = calls_of(model.student.backbone)
    for _ in range(2):
        losses = train_step(model, batch(model), optimizer)
    assert len(passes) == 2
    assert {"loss_cls", "loss_kd", "loss_fd", "loss_reg"} <= set(losses)
    check_gradients(model)
    assert unchanged(model.teacher, before)


def test_student_losses_and_random_state():
    student = config("deit_tiny_patch16_224", drop_path_rate=0.5, proj_drop_rate=0.2)
    model = build(distiller(student, method="PAT"))
    data = batch(model)
    torch.manual_seed(3)
    alone = model.student(**copy.deepcopy(data), mode="loss")["loss"]
    state = torch.get_rng_state()
    torch.manual_seed(3)
    losses = model(**data, mode="loss")
    assert torch.equal(losses["loss_cls"], alone)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert not torch.equal(model(**data, mode="loss")["loss_cls"], alone)


def test_predictions_are_the_students():
    model = build(distiller()).eval()
    raw = raw_batch()
    predictions = model.test_step(copy.deepcopy(raw))
    assert [int(sample.gt_label) for sample in predictions] == [0, 1, 2, 3]
    scores = torch.stack([sample.pred_score for sample in predictions])
    expected = model.student(model.data_preprocessor(raw)["inputs"]).softmax(1)
    torch.testing.assert_close(scores, expected)


# What a method sees.


def test_collected_outputs():
    model = build(distiller("deit_tiny_patch16_224", "resnet50", "FitNet"))
    data = batch(model)
    vit, resnet = model.student.model, model.teacher.model
    with torch.no_grad():
        tokens, patches = vit.forward_intermediates(data["inputs"], indices=[1, 3, 9, 11])
        _, *maps = resnet.forward_intermediates(data["inputs"], intermediates_only=True)
        pooled = resnet.forward_head(maps[-1], pre_logits=True)
        logits = vit(data["inputs"]), resnet(data["inputs"])
    student, teacher = outputs_of(model, data)
    assert all(map(torch.equal, student.features, patches))
    assert all(map(torch.equal, teacher.features, maps))
    assert torch.equal(student.logits, logits[0]) and torch.equal(teacher.logits, logits[1])
    assert all(x.requires_grad for x in (*student.features, student.logits))
    assert not any(x.requires_grad for x in (*teacher.features, teacher.logits))
    assert student.labels.tolist() == [0, 1, 2, 3] and student.soft_labels is None
    assert student.embedding is None and teacher.embedding is None

    student, teacher = outputs_of(build(distiller("deit_tiny_patch16_224", "resnet50", "CC")), data)
    torch.testing.assert_close(student.embedding, tokens[:, 0])
    assert torch.equal(teacher.embedding, pooled)
    assert student.embedding.requires_grad and not teacher.embedding.requires_grad


@pytest.mark.parametrize(
    ("teacher", "options"),
    [
        ("swin_tiny_patch4_window7_224", dict(method="FitNet", kd_weight=0)),
        ("mm vit", dict(method="PAT", kd_weight=0, reg_weight=0)),
        ("mm vit", dict(method="PKD")),
    ],
)
def test_feature_methods_skip_teacher_head(teacher, options):
    model = build(distiller(teacher=teacher, **options))
    network = model.teacher
    head = network.head if hasattr(network, "head") else network.model.head.fc
    calls, whole = calls_of(head, network)
    train_step(model, batch(model))
    assert calls == [] and whole == []


def test_teacher_without_head():
    teacher = config("resnet50", num_classes=0)
    model = build(distiller(teacher=teacher, method="FitNet", kd_weight=0))
    assert train_step(model, batch(model))["loss_fd"] > 0
    with pytest.raises(ValueError, match="TimmClassifier has no linear classifier in its head"):
        build(distiller(teacher=teacher, method="CC"))


@pytest.mark.parametrize("name", ["KD", "FitNet", "PAT"])
def test_passes_of_the_teacher(name):
    model = build(distiller(teacher="resnet50", method=name))
    layers, *_ = calls_of(model.teacher.model.layer4)
    train_step(model, batch(model))
    assert len(layers) == (2 if name == "PAT" else 1)


@pytest.mark.parametrize(
    "settings",
    [
        dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True),
        dict(mean=[10.0, 20, 30], std=[2.0, 4, 8], to_rgb=False),
        dict(),
    ],
)
def test_teacher_normalization(settings):
    teacher = config("vit_small_patch16_224", data_preprocessor=dict(settings))
    model = build(distiller(teacher=teacher, method="PAT"))
    raw = raw_batch()
    expected = model.teacher.data_preprocessor(copy.deepcopy(raw), False)["inputs"]
    data = model.data_preprocessor(raw, True)
    seen, *_ = calls_of(model.teacher.model)
    model(**data, mode="loss")
    assert len(seen) == 2, "plain and prompted"
    for (images,) in seen:
        assert not torch.equal(images, data["inputs"])
        torch.testing.assert_close(images, expected, atol=1e-3, rtol=1e-4)


def test_preprocessor_of_the_config():
    """As mmengine hands it over from the top level of a config."""
    common = dict(mean=[10.0, 20.0, 30.0], std=[2.0, 2.0, 2.0])
    model_cfg = distiller("resnet18", "small_mixer")
    model_cfg["student"].pop("data_preprocessor")
    model = build(dict(model_cfg, data_preprocessor=common))
    assert model.student.data_preprocessor.mean.flatten().tolist() == common["mean"]
    assert model.data_preprocessor is model.student.data_preprocessor
    own = model.teacher.data_preprocessor.mean.flatten().tolist()
    assert own == pytest.approx(IMAGENET["mean"])
    assert "type" not in common, "the config is left as it is"


# Labels.


def mixing(kind, **options):
    """A student whose batches are mixed, or a network with the loss of smoothed labels."""
    augment = dict(type=kind, alpha=1.0)
    preprocessor = dict(IMAGENET, num_classes=CLASSES, batch_augments=dict(augments=augment))
    loss = dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original", num_classes=CLASSES)
    return timm_classifier("resnet18", data_preprocessor=preprocessor, loss=loss, **options)


@pytest.mark.parametrize("kind", ["Mixup", "CutMix"])
@pytest.mark.parametrize("name", ["DKD", "OFA"])
def test_mixed_labels(kind, name, monkeypatch):
    options = dict(eps=1.5) if name == "OFA" else {}
    model = build(distiller(mixing(kind), method=name, **options))
    # The other image has the larger share, and a cut lies in the middle.
    monkeypatch.setattr(np.random, "beta", lambda a, b: 0.2)
    monkeypatch.setattr(np.random, "randint", lambda low, high, size=None: (low + high) // 2)
    data = batch(model, count=6)
    scores = torch.stack([sample.gt_score for sample in data["data_samples"]])
    assert ((scores > 0).sum(1) == 2).any() and 0.7 < scores[scores < 1].max() < 0.9
    student, teacher = outputs_of(model, data)
    assert torch.equal(student.soft_labels, scores)
    assert student.labels.tolist() == [int(row.argmax()) for row in scores]
    assert student.labels.dtype == torch.int64
    first = torch.cat([sample.gt_label for sample in data["data_samples"]])
    assert (student.labels != first).any(), "the other image is the stronger one"

    found = model(**data, mode="loss")["loss_kd"]
    loss = dkd_loss if name == "DKD" else ofa_loss
    expected, other = (
        loss(student.logits, teacher.logits, labels, **options)
        for labels in (student.labels, first)
    )
    torch.testing.assert_close(found, expected)
    assert not torch.isclose(found, other)


def test_the_teacher_sees_the_mixed_images():
    teacher = config("vit_small_patch16_224", data_preprocessor=dict())
    model = build(distiller(mixing("Mixup"), teacher=teacher))
    data = batch(model)
    (seen,) = calls_of(model.teacher.model)
    model(**data, mode="loss")
    mean, std = (torch.tensor(IMAGENET[key]).view(3, 1, 1) for key in ("mean", "std"))
    torch.testing.assert_close(seen[0][0].flip(1), data["inputs"] * std + mean)


def test_label_smoothing():
    loss = dict(type="LabelSmoothLoss", label_smooth_val=0.1, mode="original")
    model = build(distiller(config("resnet18", loss=loss), method="DKD"))
    data = batch(model)
    student, teacher = outputs_of(model, data)
    losses = model(**data, mode="loss")
    smooth = torch.nn.CrossEntropyLoss(label_smoothing=0.1)
    torch.testing.assert_close(losses["loss_cls"], smooth(student.logits, student.labels))
    torch.testing.assert_close(
        losses["loss_kd"], dkd_loss(student.logits, teacher.logits, student.labels)
    )


def test_crd_indices():
    model = build(distiller(method="CRD"))
    data = batch(model)
    student, _ = outputs_of(model, data)
    assert student.indices.tolist() == [10, 11, 12, 13]
    bank = model.distill.state_dict()["bank_student"].clone()
    train_step(model, data)
    moved = (model.distill.state_dict()["bank_student"] != bank).any(1)
    assert moved.nonzero().flatten().tolist() == [10, 11, 12, 13]
    student, _ = outputs_of(other := build(distiller(method="RKD")), batch(other))
    assert student.indices is None


# Checkpoints.


def test_state_has_the_students_own_names(tmp_path):
    model = build(distiller(method="PAT"))
    train_step(model, batch(model), torch.optim.SGD(trainable(model).values(), lr=0.1))
    state = model.state_dict()
    plain = timm.create_model("resnet18", num_classes=CLASSES, channels=(8, 8, 12, 16))
    own = {key for key in state if not key.startswith("distill.")}
    assert own == set(plain.state_dict()) and "conv1.weight" in own
    assert len(state) > len(own)
    assert not any("relative_position" in key for key in state), "those of the teacher"

    path = tmp_path / "training.pth"
    torch.save(dict(state_dict=state), path)
    plain.load_state_dict({key: state[key] for key in own}, strict=True)
    student = build(config("resnet18"), seed=1)
    load_checkpoint(student, str(path), strict=False)
    images = batch(model)["inputs"]
    expected = model.eval().student(images)
    assert torch.equal(plain.eval()(images), expected)
    assert torch.equal(student.eval()(images), expected)


@pytest.mark.parametrize("student", ["resnet18", "mm vit"])
def test_state_makes_the_round_trip(student):
    model, other = (build(distiller(student, method="PAT"), seed=seed) for seed in (0, 1))
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert not all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    other.load_state_dict(state, strict=True)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
    # A checkpoint of the student alone begins a distillation.
    plain = build(config(student), seed=2)
    result = other.load_state_dict(plain.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all(key.startswith("distill.") for key in result.missing_keys)
    for key, value in plain.state_dict().items():
        assert torch.equal(other.student.state_dict()[key], value), key


def test_checkpoint_loads_into_mmpretrain():
    model = build(distiller("mm vit", method="FitNet"))
    state = model.state_dict()
    plain = build(MMPRETRAIN["mm vit"], seed=1)
    result = plain.load_state_dict(state, strict=False)
    assert not result.missing_keys
    assert all(key.startswith("distill.") for key in result.unexpected_keys)
    images = batch(model)["inputs"]
    assert torch.equal(plain.eval()(images, mode="tensor"), model.eval()(images))


@pytest.mark.parametrize("teacher", ["swin_tiny_patch4_window7_224", "mm swin"])
def test_teacher_takes_its_checkpoint(teacher, tmp_path):
    path = tmp_path / "teacher.pth"
    source = build(config(teacher), seed=7)
    torch.save(dict(state_dict=source.state_dict()), path)
    init = MODELS.build(distiller(teacher=teacher, method="PAT", teacher_checkpoint=str(path)))
    state = source.state_dict()
    assert all(torch.equal(state[key], value) for key, value in init.teacher.state_dict().items())


# Wrong settings.


UNKNOWN = dict(
    type="TimmClassifier", model_name="test_byobnet", num_classes=CLASSES,
    data_preprocessor=dict(IMAGENET),
)  # fmt: skip
WRONG = {
    "unknown teacher": (
        dict(teacher=UNKNOWN, method="PAT"),
        r"stages of ByobNet are not known \(known: ConvNeXt.*: model.teacher_stages=\[dict\(",
    ),
    "unknown student": (
        dict(student=UNKNOWN, method="FitNet"),
        r"stages of ByobNet are not known.*model.student_stages=\[dict\(input_module='model",
    ),
    "other classes": (
        dict(teacher=config("resnet50", num_classes=7)),
        r"student has 5 classes .* teacher 7; KD compares their logits",
    ),
    "recomputation in the student": (
        dict(student=config("resnet18", with_cp=True), method="FitNet"),
        "with_cp=True of TimmClassifier",
    ),
    "recomputation in the teacher": (
        dict(teacher=config("resnet50", with_cp=True), method="PAT"),
        "with_cp=True of TimmClassifier",
    ),
    "unknown path": (
        dict(
            method="FitNet",
            teacher_stages=[dict(begin="model.layers.0", end="model.layer.0", layout="NHWC")],
        ),
        r"TimmClassifier has no module 'model.layer.0'.*model.layers.0",
    ),
    "unknown prompt": (
        dict(
            method="PAT",
            teacher_stages=[dict(begin="model.layer.0", end="model.layers.0", layout="NHWC")] * 4,
        ),
        r"TimmClassifier has no module 'model.layer.0'.*model.layers.0",
    ),
    "no output module": (
        dict(method="FitNet", student_stages=[dict(input_module="model.layer1")]),
        r"the stage with input_module='model.layer1' has no output_module",
    ),
    "end that is not run": (
        dict(method="FitNet", student_stages=[dict(begin="model.layer1", end="loss_module")]),
        r"the module 'loss_module' of a stage is not run",
    ),
    "begin that is not run": (
        dict(
            method="PAT",
            teacher="resnet50",
            teacher_stages=[dict(begin="loss_module", end=f"model.layer{i}") for i in (1, 2, 3, 4)],
        ),
        r"the module 'loss_module' of a stage is not run",
    ),
    "wrong layout": (
        dict(
            method="FitNet",
            teacher="vit_small_patch16_224",
            teacher_stages=[dict(begin="model.blocks.0", end="model.blocks.1")],
        ),
        r"'model.blocks.0': layout 'NCHW' does not fit a tensor of shape \(1, 17, 12\); known",
    ),
    "unknown layout": (
        dict(method="FitNet", teacher_stages=[dict(begin="model", end="model", layout="CHW")]),
        r"unknown layout 'CHW'; known: NCHW",
    ),
    "another number of stages": (
        dict(
            method="FitNet",
            student_stages=[dict(begin="model.layer1", end="model.layer1")],
        ),
        r"student gives 1 feature levels and the teacher 4",
    ),
    "image size of timm's teacher": (
        dict(teacher=config("vit_small_patch16_224", img_size=96)),
        r"the teacher does not take images of model.input_size=\(64, 64\) \(Input height "
        r"\(64\) doesn't match model \(96\).*img_size in the teacher's config",
    ),
    "image size of timm's student": (
        dict(student=config("deit_tiny_patch16_224", img_size=96)),
        r"the student does not take images of model.input_size=\(64, 64\)",
    ),
    "image size of mmpretrain's teacher": (
        dict(teacher="mm vit", method="FitNet", input_size=(96, 96)),
        r"the teacher does not take images of model.input_size=\(96, 96\)",
    ),
    "image size of mmpretrain's mixer": (
        dict(teacher="mm mixer", input_size=(96, 96)),
        r"the teacher does not take images of model.input_size=\(96, 96\)",
    ),
    "no head": (
        dict(student="resnet18", teacher=config("resnet50", num_classes=0), method="RKD"),
        r"TimmClassifier has no linear classifier in its head; give num_classes",
    ),
    "missing checkpoint": (dict(teacher_checkpoint="nowhere.pth"), "'nowhere.pth' does not exist"),
    "one exponent too few": (
        dict(method="OFA", eps=[1.0] * 4),
        r"OFA has 4 branches and the final logits, so eps has to be one number or 5, not 4",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("options", "message"), WRONG.values(), ids=WRONG)
def test_wrong_settings_fail_at_build_time(options, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        build(distiller(**options))
    assert "\n" not in str(error.value)


def test_recomputation_without_hooks():
    model = build(distiller(config("resnet18", with_cp=True), method="KD"))
    assert train_step(model, batch(model))["loss_kd"] > 0


@pytest.mark.parametrize("teacher", [UNKNOWN, config("resnet50", with_cp=True)])
def test_ofa_reads_student_features_only(teacher):
    model = build(distiller(teacher=teacher, method="OFA"))
    data = batch(model)
    own, other = outputs_of(model, data)
    assert len(own.features) == 4 and len(other.features) == 0
    train_step(model, data)
    check_gradients(model)


def test_explicit_stages():
    stages = [dict(begin=f"model.stages.{i}", end=f"model.stages.{i}") for i in range(4)]
    model = build(distiller(UNKNOWN, method="FitNet", student_stages=stages))
    data = batch(model)
    own, _ = outputs_of(model, data)
    assert [x.shape[2] for x in own.features] == [16, 8, 4, 2]
    assert train_step(model, data)["loss_fd"] > 0


# Branches and aligners.


@pytest.mark.parametrize(
    ("student", "teacher", "branch", "aligner"),
    [
        ("resnet18", "resnet50", MapBranch, MapAligner),
        ("deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", TokenBranch, TokenAligner),
        ("mm swin", "mm mixer", TokenBranch, TokenAligner),
        ("mobilenetv2_035", "vit_small_patch16_224", MapBranch, TokenAligner),
    ],
)
def test_layers_fit_the_kind_of_the_networks(student, teacher, branch, aligner):
    ofa = build(distiller(student, teacher, "OFA")).distill
    assert [type(layer) for layer in ofa.branches] == [branch] * 4
    pat = build(distiller(student, teacher, "PAT")).distill
    assert [type(layer) for layer in pat.aligners] == [aligner] * 4
    assert len(pat.prompts) == 4


# The angles of RKD.


class LargestTensor(TorchDispatchMode):
    """Notes the number of elements of the largest tensor that is made."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return out


def test_rkd_memory_of_large_batch():
    rows = 512
    torch.manual_seed(0)
    method = RKD(max_rows=None)
    own, target = torch.randn(rows, 4, requires_grad=True), torch.randn(rows, 4)
    with LargestTensor() as largest:
        losses = method(NetworkOutputs(embedding=own), NetworkOutputs(embedding=target), None)
        sum(losses.values()).backward()
    assert rows**2 < largest.numel < rows**3 / 30
    assert losses["loss_rkd_angle"] > 0 and torch.isfinite(own.grad).all()


def test_teacher_checkpoint_over_pretrained(tmp_path, monkeypatch):
    cfg = distiller(teacher="convnext_tiny")
    torch.save(build(cfg, seed=1).teacher.state_dict(), tmp_path / "teacher.pth")

    def download(*args, **kwargs):
        raise AssertionError("no pretrained weights are needed")

    monkeypatch.setattr("timm.models._builder.load_pretrained", download)
    cfg["teacher"]["pretrained"] = True
    with pytest.raises(AssertionError, match="no pretrained"):
        build(cfg)
    cfg["teacher_checkpoint"] = str(tmp_path / "teacher.pth")
    build(cfg)
    assert cfg["teacher"]["pretrained"]
