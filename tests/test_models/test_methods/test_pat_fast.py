"""What makes PAT cheaper: a shared prefix of both passes, prompts on a part of the batch."""

from contextlib import nullcontext

import pytest
import torch
from helpers import classifiers, detectors
from helpers.steps import observe_step
from torch.utils.flop_counter import FlopCounterMode

from pat_mmdet.models.losses import hcl_loss, kd_loss
from pat_mmdet.models.task_modules import PrefixCache

TEACHERS = (
    "swin_tiny_patch4_window7_224",
    "vit_small_patch16_224",
    "small_mixer",
    "convnext_tiny",
    "resnet50",
    "mm swin",
    "mm vit",
    "mm mixer",
    "mm convnext",
    "mm resnet",
)


def classifier_pair(teacher, fast_teacher=True, **options):
    student = "deit_tiny_patch16_224" if "resnet" not in teacher else "resnet18"
    cfg = classifiers.distiller(student, teacher, "PAT", **options)
    model = classifiers.build({**cfg, "fast_teacher": fast_teacher})
    return model, classifiers.batch(model)


def detector_pair(fast_teacher=True, **options):
    options = {f"model.method.{key}": value for key, value in options.items()}
    options["model.fast_teacher"] = fast_teacher
    model = detectors.build(detectors.pair_config(**options))
    return model, detectors.batch(model, [(3, 64, 64)] * 3)


def beta(model, value):
    with torch.no_grad():
        for block in model.distill.prompts.values():
            block.beta.fill_(value)


def step(model, data):
    """Losses and gradients of a step, from the same random state."""
    torch.manual_seed(0)
    losses = model(**data, mode="loss")
    model.parse_losses(losses)[0].backward()
    grads = {name: param.grad for name, param in model.named_parameters() if param.requires_grad}
    model.zero_grad(set_to_none=True)
    model.distill._previous = {}
    return losses, grads


def assert_equal_steps(first, second):
    for one, other in zip(first, second):
        assert one.keys() == other.keys()
        for name, value in one.items():
            values, others = (x if isinstance(x, list) else [x] for x in (value, other[name]))
            assert all(map(torch.equal, values, others)), name


@pytest.mark.parametrize(
    ("teacher", "stage"), [*((name, 2) for name in TEACHERS), ("detector", 0), ("detector", 2)]
)
def test_prefix_cache_saves_flops(teacher, stage, monkeypatch):
    # The counter does not know the products of the fast layers.
    options = dict(afp_stages=tuple(range(stage, 4)), fast_teacher=False)
    model, data = (
        detector_pair(**options) if teacher == "detector" else classifier_pair(teacher, **options)
    )
    model.student.eval()  # no random depth, no statistics that move
    beta(model, 0.5)
    with FlopCounterMode(display=False) as shared_work:
        shared = step(model, data)
    monkeypatch.setattr(PrefixCache, "replay", lambda *_: nullcontext())
    with FlopCounterMode(display=False) as work:
        assert_equal_steps(shared, step(model, data))
    less = 1 - shared_work.get_total_flops() / work.get_total_flops()
    assert less > 0


def test_prefix_cache_of_sub_batch_in_bfloat16():
    model, data = classifier_pair("convnext_tiny", afp_stages=(2, 3), prompted_share=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(**data, mode="loss")
    assert all(torch.isfinite(value) for value in losses.values())


def test_prefix_cache_is_cleared():
    model, data = classifier_pair("convnext_tiny", afp_stages=(2, 3))
    step(model, data)
    teacher = model.frozen_teacher
    assert teacher.prefix_cache._cache == teacher.prefix_cache._replayed == {}
    with pytest.raises(RuntimeError, match="the plain pass of the step before"):
        teacher.forward_prompted(lambda stage, x: x)


@pytest.mark.parametrize("task", ["classification", "detection"])
def test_prompted_share(task):
    options = dict(prompted_share=0.4, feedback="none", afp_stages=(1, 3))
    if task == "detection":
        model, data = detector_pair(**options)
    else:
        model, data = classifier_pair("mm swin", **options)
    beta(model, 0.5)
    images = 2  # 0.4 of 3 or of 4, rounded up
    model.distill.eval()  # the aligners' statistics stay
    step = observe_step(model, data)
    losses, student, teacher, prompted = step.losses, step.student, step.teacher, step.prompted
    assert all(len(x) == images for x in prompted.features)
    method = model.distill
    aligned = [
        aligner(x, t.shape[-2:])
        for aligner, x, t in zip(method.aligners, method.raa(student.features), teacher.features)
    ]
    total = 0
    for own, plain, other in zip(aligned, teacher.features, prompted.features):
        rows = [hcl_loss(own[i : i + 1], other[i : i + 1]) for i in range(images)]
        rows += [hcl_loss(own[i : i + 1], plain[i : i + 1]) for i in range(images, len(own))]
        total = total + sum(rows) / len(rows)
    torch.testing.assert_close(losses["loss_fd"], method.fd_weight * total)
    rows = len(prompted.logits)
    assert 0 < rows < len(teacher.logits)
    torch.testing.assert_close(losses["loss_reg"], kd_loss(prompted.logits, teacher.logits[:rows]))
    torch.testing.assert_close(losses["loss_kd"], kd_loss(student.logits, teacher.logits))


@pytest.mark.parametrize("task", ["classification", "RoI heads", "dense heads"])
def test_partial_prompts_at_beta_zero(task):
    share = 0.5
    if task == "classification":
        model, data = classifier_pair("vit_small_patch16_224", prompted_share=share)
    elif task == "RoI heads":
        model, data = detector_pair(prompted_share=share)
    else:
        from helpers.one_stage import pair

        cfg = pair("RetinaNet", "RetinaNet")
        cfg.model.method.prompted_share = share
        model = detectors.build(cfg)
        data = detectors.batch(model)
    step = observe_step(model, data)
    rows = len(step.prompted.logits)
    assert rows > 0
    torch.testing.assert_close(step.prompted.logits, step.teacher.logits[:rows])
    for plain, prompted in zip(step.teacher.features, step.prompted.features):
        torch.testing.assert_close(prompted, plain[: len(prompted)])


@pytest.mark.parametrize("share", [0, 1.5, -1])
def test_invalid_prompted_share(share):
    with pytest.raises(
        ValueError, match=f"prompted_share={share}: PAT takes a number of at most 1 and above 0"
    ):
        classifier_pair("convnext_tiny", prompted_share=share)
