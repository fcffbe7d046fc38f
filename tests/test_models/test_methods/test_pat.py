"""Options of PAT: values, gradients, and what each of them promises."""

import re
from contextlib import nullcontext

import pytest
import torch
from helpers import classifiers
from helpers.methods import NoWaiting, build_layers
from helpers.pat import BATCH, STUDENT, TEACHER, ToyTeacher, make_pat, pat_step, student_outputs
from torch import nn

from pat_mmdet.models.distillers import loss_share
from pat_mmdet.models.losses import channel_correlation_loss, spread_weights
from pat_mmdet.models.methods import PAT, FitNet
from pat_mmdet.structures import Requires
from pat_mmdet.utils import load_config

PLUS = dict(alignment="projector", distance="correlation", weigh_levels=True, afp_stages=(),
            fd_weight=10.0)  # fmt: skip
OPTIONS = {
    "defaults": {},
    "no prompts": dict(afp_stages=()),
    "projector": dict(alignment="projector", distance="mse"),
    "gated": dict(alignment="projector+raa"),
    "correlation": dict(distance="correlation", normalize_feedback=True),
    "regions": dict(region_weight=2.0, renormalize_target=True),
    "plus": PLUS,
    "identity": dict(PLUS, alignment="identity"),
    "plus with regions": dict(PLUS, region_weight=10.0),
    "plus with prompts": dict(PLUS, afp_stages=(1,), prompted_share=0.5),
}
every_form = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)

# loss_fd, loss_kd, loss_reg; norms of the gradients of both levels of the student, and of the
# parameters of RAA, the aligners and the prompts. Values of the version before these options.
GOLDEN = {
    "defaults": (
        {},
        [6.273115, 0.3921763, 0.02726727, 0.01073197, 0.009672334, 0.3116345, 1.377279, 4.079772],
    ),
    "current": (
        dict(feedback="current"),
        [6.273104, 0.3921763, 0.02726568, 0.01073241, 0.009672468, 0.3116476, 1.377273, 4.079675],
    ),
    "none": (
        dict(feedback="none"),
        [6.30221, 0.3921763, 0.0282381, 0.0107066, 0.009650796, 0.3110765, 1.38278, 4.306903],
    ),
    "spatial": (
        dict(prompt="spatial"),
        [7.643571, 0.3921763, 0.100125, 0.01142807, 0.009994659, 0.3221749, 1.562149, 20.37028],
    ),
    "late": (
        dict(afp_stages=(1,)),
        [5.608063, 0.3921763, 0.01907519, 0.0105146, 0.009648466, 0.3056239, 1.278437, 0.9649769],
    ),
    "share": (
        dict(prompted_share=0.5),
        [5.801547, 0.3921763, 0.01789717, 0.01517752, 0.01194082, 0.4170488, 1.308895, 1.873932],
    ),
}


@pytest.mark.parametrize(("options", "expected"), GOLDEN.values(), ids=GOLDEN)
def test_golden_values(options, expected):
    method = make_pat(**options)
    pat_step(method)  # gives the second one its feedback
    losses, student = pat_step(method, seed=1)
    assert list(losses) == ["loss_fd", "loss_kd", "loss_reg"]
    parts = [
        [param.grad.flatten() for name, param in method.named_parameters() if name.startswith(part)]
        for part in ("raa", "aligners", "prompts")
    ]
    gradients = [*(x.grad for x in student.features), *map(torch.cat, parts)]
    values = [*losses.values(), *(x.norm() for x in gradients)]
    assert [x.item() for x in values] == pytest.approx(expected, rel=2e-5)


@every_form
def test_gradients_without_synchronisation(options):
    method = make_pat(**options)
    if "gates" in dict(method.named_children()):
        nn.init.ones_(method.gates[0])
        nn.init.ones_(method.gates[1])
    for seed in (0, 1):
        with NoWaiting():
            losses, student = pat_step(method, seed=seed)
    assert all(torch.isfinite(loss) for loss in losses.values())
    for tensor in (*student.features, student.logits):
        assert torch.count_nonzero(tensor.grad) > 0.5 * tensor.numel()
    for name, param in method.named_parameters():
        assert param.grad is not None and torch.isfinite(param.grad).all(), name
    reached = {name.split(".")[0] for name, param in method.named_parameters() if param.grad.any()}
    assert reached == {name for name, module in method.named_children() if [*module.parameters()]}


@every_form
def test_half_precision_is_finite(options):
    method = make_pat(**options)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = method(student_outputs(), ToyTeacher().plain(), ToyTeacher())
    sum(losses.values()).backward()
    for loss in losses.values():
        assert loss.dtype == torch.float32 and torch.isfinite(loss)
    assert all(torch.isfinite(param.grad).all() for param in method.parameters())


@every_form
def test_first_step_uses_every_parameter(options):
    """Distributed training does not look for unused ones."""
    method = build_layers(PAT(**{"raa_grid": 2, "raa_dim": 16, **options}), STUDENT, TEACHER)
    pat_step(method)
    assert all(param.grad is not None for param in method.parameters())


def test_requirements():
    features, prompts = Requires.FEATURES, Requires.PROMPTS
    assert PAT().requires == features | prompts | Requires.LOGITS
    assert PAT(kd_weight=0).requires == features | prompts | Requires.TEACHER_LOGITS
    assert PAT(kd_weight=0, reg_weight=0).requires == features | prompts
    assert PAT(afp_stages=()).requires == features | Requires.LOGITS
    assert PAT(afp_stages=(), kd_weight=0).requires == features


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(weigh_levels=True), "weigh_levels=True has no effect without distance='correlation'"),
        (
            dict(renormalize_target=True, afp_stages=()),
            "no effect without prompts and a raw distance",
        ),
        (
            dict(renormalize_target=True, distance="correlation"),
            "without prompts and a raw distance",
        ),
        (dict(normalize_feedback=True, feedback="none"), "no effect without prompts with feedback"),
        (dict(afp_stages=(2,)), r"afp_stages=\(2,\): the teacher has the stages 0 to 1"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_pat(**options)


def test_fitnet_as_options():
    fitnet = build_layers(FitNet(), STUDENT, TEACHER)
    pat = make_pat(alignment="projector", distance="mse", afp_stages=())
    fitnet.load_state_dict(pat.state_dict())
    (ours, student), (theirs, other) = pat_step(pat), pat_step(fitnet)
    assert ours == theirs
    for x, y in zip((*student.features, student.logits), (*other.features, other.logits)):
        assert torch.equal(x.grad, y.grad)


def test_closed_gates_leave_the_projection_alone():
    gated = make_pat(alignment="projector+raa", afp_stages=())
    plain = make_pat(alignment="projector", afp_stages=())
    plain.projectors.load_state_dict(gated.projectors.state_dict())
    for gate in gated.gates:
        nn.init.zeros_(gate)
    assert pat_step(gated)[0]["loss_fd"] == pat_step(plain)[0]["loss_fd"]
    assert all(gate.grad.any() for gate in gated.gates)
    fresh = build_layers(PAT(raa_grid=2, raa_dim=16, alignment="projector+raa"), STUDENT, TEACHER)
    assert not any(gate.any() for gate in fresh.gates)
    # Settings for one-dimensional parameters, such as those without weight decay, hold for gates.
    assert {gate.ndim for gate in fresh.gates} == {1}


def observed(method, seed=0):
    """Return the arguments of the observer in a step."""
    seen = []
    method.observer = lambda *args: seen.append(args)
    losses, _ = pat_step(method, seed=seed)
    method.observer = None
    return losses, *seen[0]


def test_correlation_is_weighed_by_the_plain_teacher():
    method = make_pat(distance="correlation", weigh_levels=True, fd_weight=3.0)
    losses, aligned, targets, plain, prompted = observed(method)
    assert all(map(torch.equal, targets, prompted.features))
    weights = spread_weights(plain.features, weigh_levels=True)
    expected = 3 * sum(map(channel_correlation_loss, aligned, targets, weights))
    torch.testing.assert_close(losses["loss_fd"], expected)


def test_correlation_is_scale_free():
    method = make_pat(**PLUS)
    before = pat_step(method)[0]["loss_fd"]
    for projector in method.projectors:
        projector.conv.weight.data.mul_(7)
    torch.testing.assert_close(pat_step(method)[0]["loss_fd"], before)


def test_prompts_cannot_scale_a_renormalised_target():
    method = make_pat(renormalize_target=True)
    _, _, targets, plain, prompted = observed(method)
    for target, feature, changed in zip(targets, plain.features, prompted.features):
        assert not torch.allclose(changed.std((0, 2, 3)), feature.std((0, 2, 3)), rtol=0.01)
        # A constant channel stays constant.
        alive = torch.minimum(changed.std((0, 2, 3)), feature.std((0, 2, 3))) > 0.01
        assert alive.float().mean() > 0.8
        for moment in (torch.mean, torch.std):
            found, expected = (moment(x, dim=(0, 2, 3))[alive] for x in (target, feature))
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("distance", ["mse", "correlation"])
def test_targets_without_prompt(distance):
    method = make_pat(afp_stages=(1,), prompted_share=0.5, distance=distance)
    losses, aligned, targets, plain, prompted = observed(method)
    assert targets[0] is plain.features[0]
    assert targets[1] is prompted.features[1] and len(targets[1]) == BATCH // 2
    mixed = [plain.features[0], torch.cat([targets[1], plain.features[1][BATCH // 2 :]])]
    if distance == "mse":
        expected = sum(map(nn.functional.mse_loss, aligned, mixed))
    else:
        expected = sum(
            map(channel_correlation_loss, aligned, mixed, spread_weights(plain.features))
        )
    torch.testing.assert_close(losses["loss_fd"], expected)


@pytest.mark.parametrize(
    "options",
    [dict(distance="correlation"), dict(alignment="projector+raa", normalize_feedback=True)],
    ids=["correlation", "gated"],
)
def test_beta_zero_is_plain_teacher(options):
    method = make_pat(beta=0.0, **options)
    for seed in (0, 1):
        _, _, _, plain, prompted = observed(method, seed)
        assert all(map(torch.equal, prompted.features, plain.features))
        assert torch.equal(prompted.logits, plain.logits)


def test_region_loss():
    method = make_pat(region_weight=2.0, afp_stages=(), raa_grid=3).eval()
    student, teacher = student_outputs(), ToyTeacher().plain()
    losses = method(student, teacher, None)
    expected = 0
    for head, regions, feature, weight in zip(
        method.region_heads,
        method.raa(student.features),
        teacher.features,
        spread_weights(teacher.features),
    ):
        averages = nn.functional.adaptive_avg_pool2d(feature, 3)
        expected += channel_correlation_loss(head(regions, (3, 3)), averages, weight)
    torch.testing.assert_close(losses["loss_region"], 2 * expected)
    # The other losses are as without.
    alone = make_pat(afp_stages=(), raa_grid=3).eval()
    alone.load_state_dict(method.state_dict(), strict=False)
    assert alone(student, teacher, None)["loss_fd"] == losses["loss_fd"]


def test_map_smaller_than_grid():
    method = make_pat(region_weight=1.0, alignment="projector", afp_stages=(), raa_grid=6)
    losses, _ = pat_step(method)
    assert losses["loss_region"] > 0 and torch.isfinite(losses["loss_region"])


def test_normalised_feedback_is_scale_free():
    gaps = []
    for scale in (1.0, 50.0):
        method = make_pat(normalize_feedback=True)
        method.prompts["1"].encode_feedback = lambda gap, size: gaps.append(gap) or gap[..., :5, :5]
        teacher = ToyTeacher()
        teacher.weights = [weight * scale**0.5 for weight in teacher.weights]
        method.aligners[1].conv.weight.data.mul_(scale)
        method.aligners[1].conv.bias.data.mul_(scale)
        method(student_outputs(), teacher.plain(), teacher)
    for gap in gaps:
        torch.testing.assert_close(gap.mean((0, 2, 3)), torch.zeros(48), atol=1e-5, rtol=0)
        torch.testing.assert_close(gap.std((0, 2, 3)), torch.ones(48), atol=0.02, rtol=0)


def test_released_initialisation():
    torch.manual_seed(0)
    options = dict(raa_grid=2, raa_dim=64, alignment="projector+raa", region_weight=1.0)
    method = PAT(**options, aligner_init="released")
    method = build_layers(method, STUDENT, TEACHER)
    for convs in (method.aligners, method.projectors, method.region_heads):
        for conv in (module for module in convs.modules() if isinstance(module, nn.Conv2d)):
            # Kaiming by the number of outputs.
            assert conv.weight.std().item() == pytest.approx(
                (2 / conv.out_channels) ** 0.5, rel=0.1
            )
            assert conv.bias is None or not conv.bias.any()
    torch.manual_seed(0)
    plain = build_layers(PAT(**options), STUDENT, TEACHER)
    assert all(map(torch.equal, method.raa.parameters(), plain.raa.parameters()))


# Warning of a feature loss that drowns the others.


@pytest.fixture
def warnings(monkeypatch):
    messages = []
    monkeypatch.setattr(loss_share, "print_log", lambda message, **_: messages.append(message))
    return messages


@pytest.mark.parametrize(
    ("feature_loss", "message"),
    [
        (
            96.0,
            r"loss_fd is 98% of the total loss .* model.method.fd_weight=0.04 instead of 2, or ",
        ),
        (15.0, None),
    ],
)
def test_share_of_the_feature_loss(feature_loss, message, warnings):
    check = loss_share.LossShareCheck(PAT(fd_weight=2.0))
    check.steps_left = 3
    for step in range(3):
        assert check.steps_left == 3 - step and warnings == []
        value = torch.tensor(feature_loss + step - 1)
        with NoWaiting() if step < 2 else nullcontext():
            check.update(value + 2.0, {"loss_fd": value})
    assert check.steps_left == 0
    assert len(warnings) == (message is not None)
    if message:
        assert re.match(message, warnings[0])


@pytest.mark.parametrize("distance", ["hcl", "correlation"])
def test_distiller_watches_the_first_steps(distance, warnings):
    cfg = classifiers.distiller(method="PAT", distance=distance, fd_weight=1e4, afp_stages=())
    model = classifiers.build(cfg)
    data = classifiers.batch(model)
    for _ in range(12):
        model(**data, mode="loss")
    assert len(warnings) == (distance == "hcl")
    assert model._loss_share.steps_left == 0


# Real networks.


def classification_form(name):
    cfg = load_config(
        "configs/pat/tinyvit_mini-mixer_mini_cifar10.py", {"model.teacher_checkpoint": None}, name
    )
    model = classifiers.build(cfg.model)
    return model, model.data_preprocessor(classifiers.raw_batch(size=32), True)


def test_raa_alone():
    (frozen, data), (full, _) = (classification_form(name) for name in ("pat_raa", "pat"))
    full.load_state_dict(frozen.state_dict(), strict=False)
    full.teacher.load_state_dict(frozen.teacher.state_dict())
    losses = []
    for model in (frozen, full):
        torch.manual_seed(1)
        losses.append(model(**data, mode="loss"))
    assert losses[1].pop("loss_reg").abs() < 1e-6
    assert losses[0].keys() == losses[1].keys()
    for name in losses[0]:
        assert torch.equal(losses[0][name], losses[1][name]), name
