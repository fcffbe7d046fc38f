"""The methods beyond KD, FitNet and PAT: values, gradients, training steps, properties."""

import math

import pytest
import torch
from helpers.detectors import batch, build, pair_config, train_step, trainable
from helpers.methods import NoWaiting, build_layers, close, normal, numbers
from mmengine.config import Config
from torch import nn

from pat_mmdet.models.losses import dist_loss, dkd_loss, ofa_loss
from pat_mmdet.models.methods import CWD, DIST, DKD, MGD, OFA, PKD
from pat_mmdet.registry import METHODS, build_method
from pat_mmdet.structures import FeatureSpec, NetworkOutputs, Requires

NAMES = ("DKD", "DIST", "OFA", "PKD", "CWD", "MGD")
FEATURE_METHODS = ("PKD", "CWD", "MGD")
KEYS = {
    "DKD": {"loss_kd"},
    "DIST": {"loss_kd"},
    "OFA": {"loss_ofa", "loss_kd"},
    "PKD": {"loss_fd"},
    "CWD": {"loss_fd"},
    "MGD": {"loss_fd"},
}
NUM_CLASSES, WIDTH, ROWS = 5, 6, 8
SHAPES = ((4, 8, 6), (4, 4, 3))


def spec(shapes=SHAPES):
    return FeatureSpec(features=shapes, num_classes=NUM_CLASSES, embedding=WIDTH)


def view(seed, shapes=SHAPES, size=2, rows=ROWS, scale=1.0, grad=False):
    """A network's outputs; labels cover all classes, background included."""
    tensors = [
        *(normal(size, *shape, seed=seed + i, scale=scale) for i, shape in enumerate(shapes)),
        normal(rows, NUM_CLASSES, seed=seed + 50, scale=2 * scale),
        normal(rows, WIDTH, seed=seed + 60, scale=scale),
    ]
    *features, logits, embedding = [tensor.requires_grad_(grad) for tensor in tensors]
    labels = (torch.arange(rows) + NUM_CLASSES - 1) % NUM_CLASSES
    return NetworkOutputs(features=features, logits=logits, embedding=embedding, labels=labels)


def make(name, student=SHAPES, teacher=SHAPES, **options):
    torch.manual_seed(0)
    return build_layers(METHODS.get(name)(**options), spec(student), spec(teacher))


def losses_of(method, student, teacher):
    return method(student, teacher, None)


# Reference values: numbers and loops in double precision, written from the papers' formulas. The
# losses of DKD, DIST and OFA have theirs in test_losses.py.


def softmax(row, temperature=1.0):
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q))


def pearson(a, b):
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    product = sum((x - mean_a) * (y - mean_b) for x, y in zip(a, b))
    square_a, square_b = sum((x - mean_a) ** 2 for x in a), sum((y - mean_b) ** 2 for y in b)
    return product / math.sqrt(square_a * square_b)


def pkd_reference(s, t):
    """``(1 − r) · (n − 1) / n``, the mean over channels."""
    total = 0.0
    for channel in range(s.shape[1]):
        a, b = numbers(s[:, channel].flatten()), numbers(t[:, channel].flatten())
        total += (1 - pearson(a, b)) * (len(a) - 1) / len(a)
    return total / s.shape[1]


def cwd_reference(s, t, temperature):
    total = 0.0
    for image in range(s.shape[0]):
        for channel in range(s.shape[1]):
            p_s, p_t = (softmax(numbers(x[image, channel].flatten()), temperature) for x in (s, t))
            total += kl(p_t, p_s)
    return temperature**2 * total / (s.shape[0] * s.shape[1])


@pytest.mark.parametrize("alpha, beta, temperature", [(1.0, 2.0, 1.0), (2.0, 0.25, 3.0)])
def test_dkd_value(alpha, beta, temperature):
    student, teacher = view(1), view(2)
    method = make("DKD", alpha=alpha, beta=beta, temperature=temperature, kd_weight=0.7)
    expected = dkd_loss(student.logits, teacher.logits, student.labels, alpha, beta, temperature)
    torch.testing.assert_close(losses_of(method, student, teacher)["loss_kd"], 0.7 * expected)
    # The labels are those of the student: the teacher's view has none.
    teacher.labels = None
    torch.testing.assert_close(losses_of(method, student, teacher)["loss_kd"], 0.7 * expected)


@pytest.mark.parametrize("beta, gamma, temperature", [(1.0, 1.0, 1.0), (0.5, 3.0, 2.0)])
def test_dist_value(beta, gamma, temperature):
    student, teacher = view(1), view(2)
    method = make("DIST", beta=beta, gamma=gamma, temperature=temperature, kd_weight=0.7)
    expected = dist_loss(student.logits, teacher.logits, beta, gamma, temperature)
    torch.testing.assert_close(losses_of(method, student, teacher)["loss_kd"], 0.7 * expected)


@pytest.mark.parametrize("eps, temperature", [(1.0, 1.0), (1.5, 1.0), (1.5, 2.0)])
def test_ofa_value(eps, temperature):
    student, teacher = view(1), view(2)
    method = make(
        "OFA", eps=eps, temperature=temperature, hidden_channels=7, ofa_weight=0.3, kd_weight=0.7
    )
    (branch,) = method.branches
    first, norm, last = branch
    assert first.bias is None, "the norm would leave it without gradient"
    assert (first.in_features, first.out_features) == (WIDTH, 7)
    assert (last.in_features, last.out_features) == (7, NUM_CLASSES)
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    nn.init.uniform_(norm.bias, -1.0, 1.0)
    hidden = student.embedding.double() @ first.weight.double().T
    hidden = (hidden - hidden.mean(0)) / (hidden.var(0, unbiased=False) + norm.eps).sqrt()
    hidden = hidden * norm.weight.double() + norm.bias.double()
    logits = hidden @ last.weight.double().T + last.bias.double()
    losses = losses_of(method, student, teacher)
    branch = ofa_loss(logits, teacher.logits, student.labels, eps, temperature)
    final = ofa_loss(student.logits, teacher.logits, student.labels, eps, temperature)
    torch.testing.assert_close(losses["loss_ofa"].double(), 0.3 * branch)
    torch.testing.assert_close(losses["loss_kd"], 0.7 * final)


def test_pkd_value():
    student, teacher = view(1), view(2, scale=3.0)
    expected = sum(pkd_reference(s, t) for s, t in zip(student.features, teacher.features))
    close(losses_of(make("PKD"), student, teacher)["loss_fd"], 6.0 * expected)
    close(losses_of(make("PKD", fd_weight=0.5), student, teacher)["loss_fd"], 0.5 * expected)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_cwd_value(temperature):
    student, teacher = view(1), view(2, scale=3.0)
    expected = sum(
        cwd_reference(s, t, temperature) for s, t in zip(student.features, teacher.features)
    )
    options = dict(temperature=temperature)
    close(losses_of(make("CWD", **options), student, teacher)["loss_fd"], 10.0 * expected)
    losses = losses_of(make("CWD", fd_weight=0.5, **options), student, teacher)
    close(losses["loss_fd"], 0.5 * expected)


def recorded_masks(method):
    """What enters each generator in the steps to come; zero is what was hidden."""
    inputs = []
    for generator in method.generators:
        generator.register_forward_pre_hook(lambda module, args: inputs.append(args[0].detach()))
    return inputs


def test_mgd_value():
    shapes = ((3, 8, 6), (4, 4, 3))
    student, teacher = view(1, shapes), view(2)
    method = make("MGD", shapes, fd_weight=1e-2)
    inputs = recorded_masks(method)
    losses = losses_of(method, student, teacher)
    expected = 0.0
    for i, (own, target) in enumerate(zip(student.features, teacher.features)):
        projector = method.projectors[i].conv
        assert isinstance(projector, nn.Conv2d if i == 0 else nn.Identity)
        full = own.double()
        if i == 0:
            full = torch.einsum("kc,nchw->nkhw", projector.weight[:, :, 0, 0].double(), full)
            full = full + projector.bias.double()[:, None, None]
        hidden = (inputs[i] == 0).all(1, keepdim=True)
        assert 0 < hidden.sum() < hidden.numel()
        masked = full * ~hidden
        torch.testing.assert_close(inputs[i].double(), masked, rtol=1e-5, atol=1e-6)
        first, _, last = method.generators[i]
        for conv in (first, last):
            assert conv.kernel_size == (3, 3) and conv.padding == (1, 1)
        weights = [(conv.weight.double(), conv.bias.double()) for conv in (first, last)]
        restored = nn.functional.conv2d(masked, *weights[0], padding=1).clamp(min=0)
        restored = nn.functional.conv2d(restored, *weights[1], padding=1)
        expected += float((restored - target.double()).detach().square().sum()) / len(own)
    close(losses["loss_fd"], 1e-2 * expected)


# Properties.


def scaled(teacher, scale=1.0, offset=0.0):
    """The teacher with all channels scaled and moved, each by its own numbers."""
    features = []
    for x in teacher.features:
        factors = torch.arange(1, x.shape[1] + 1)[:, None, None]
        features.append(x * (scale * factors if scale != 1 else 1.0) + offset * factors)
    return NetworkOutputs(features=features)


def test_pkd_scale_and_offset_invariance():
    student, teacher = view(1), view(2)
    method = make("PKD")
    value = losses_of(method, student, teacher)["loss_fd"]
    same = losses_of(method, student, scaled(teacher, scale=2.5, offset=-3.0))["loss_fd"]
    torch.testing.assert_close(same, value, rtol=1e-5, atol=0)
    assert losses_of(method, student, scaled(student, 2.5, -3.0))["loss_fd"].abs() < 1e-5
    flipped = NetworkOutputs(features=[-x for x in student.features])
    # 1 − r = 2 on both levels, times (n − 1) / n.
    expected = 6.0 * sum(2 * (1 - 1 / x[:, 0].numel()) for x in student.features)
    close(losses_of(method, student, flipped)["loss_fd"], expected)


def test_pkd_degenerate_maps():
    shapes = ((4, 1, 1), (4, 4, 3))
    student, teacher = view(1, shapes, size=1, grad=True), view(2, shapes, size=1)
    teacher.features[1][:, 0] = 7.0
    loss = losses_of(make("PKD", shapes, shapes), student, teacher)["loss_fd"]
    loss.backward()
    assert loss > 0 and torch.isfinite(loss)
    assert all(torch.isfinite(x.grad).all() for x in student.features)
    assert torch.count_nonzero(student.features[0].grad) == 0


def test_cwd_offset_invariance():
    student, teacher = view(1), view(2)
    method = make("CWD")
    value = losses_of(method, student, teacher)["loss_fd"]
    moved = losses_of(method, student, scaled(teacher, offset=5.0))["loss_fd"]
    torch.testing.assert_close(moved, value, rtol=1e-4, atol=0)
    assert losses_of(method, student, scaled(student))["loss_fd"].abs() < 1e-5
    assert losses_of(method, student, scaled(student, offset=5.0))["loss_fd"].abs() < 1e-4
    # Scale is not invisible, as it is to PKD.
    assert losses_of(method, student, scaled(student, scale=2.0))["loss_fd"] > 0.1 * value


def test_mgd_mask_seed():
    method = make("MGD")
    student, teacher = view(1), view(2)
    inputs = recorded_masks(method)
    values = []
    for seed in (3, None, 3):
        if seed is not None:
            torch.manual_seed(seed)
        values.append(losses_of(method, student, teacher)["loss_fd"])
    first, second, third = inputs[0:2], inputs[2:4], inputs[4:6]
    for x, y, z in zip(first, second, third):
        assert torch.equal(x, z)
        hidden_x, hidden_y = x[:, 0] == 0, y[:, 0] == 0
        assert not torch.equal(hidden_x, hidden_y)
        assert not torch.equal(hidden_x[0], hidden_x[1]), "images have masks of their own"
        assert torch.equal(x == 0, hidden_x[:, None].expand_as(x)), "all channels at once"
    assert values[0] == values[2] != values[1]


@pytest.mark.parametrize("ratio", [0.0, 0.45, 0.65])
def test_mgd_mask_ratio(ratio):
    shapes = ((4, 100, 100),)
    method = make("MGD", shapes, shapes, mask_ratio=ratio)
    inputs = recorded_masks(method)
    losses_of(method, view(1, shapes), view(2, shapes))
    share = float((inputs[0] == 0).float().mean())
    assert share == 0 if ratio == 0 else abs(share - ratio) < 0.02


def test_ofa_eps_one_is_cross_entropy():
    student, teacher = view(1), view(2)
    loss = losses_of(make("OFA", eps=1.0), student, teacher)["loss_kd"]
    expected = nn.functional.cross_entropy(
        student.logits.double(), teacher.logits.double().softmax(1)
    )
    close(loss, float(expected))
    other = NetworkOutputs(
        logits=student.logits, embedding=student.embedding, labels=student.labels.flip(0)
    )
    close(losses_of(make("OFA", eps=1.0), other, teacher)["loss_kd"], float(expected))
    trusting = losses_of(make("OFA", eps=1.5), student, teacher)["loss_kd"]
    assert not torch.isclose(trusting, loss)


@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_projection_and_resizing(name):
    shapes = ((3, 4, 3), (4, 8, 6))
    student, teacher = view(1, shapes, grad=True), view(2)
    method = make(name, shapes)
    kinds = [type(projector.conv) for projector in method.projectors]
    assert kinds == [nn.Conv2d, nn.Identity]
    assert method.projectors[0].conv.weight.shape == (4, 3, 1, 1)
    torch.manual_seed(4)
    loss = losses_of(method, student, teacher)["loss_fd"]
    resized = [
        nn.functional.interpolate(projector.conv(x), size=target.shape[2:], mode="bilinear")
        for projector, x, target in zip(method.projectors, student.features, teacher.features)
    ]
    equal = make(name)
    if name == "MGD":
        equal.generators.load_state_dict(method.generators.state_dict())
    torch.manual_seed(4)
    expected = losses_of(equal, NetworkOutputs(features=resized), teacher)["loss_fd"]
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for tensor in (*student.features, *method.parameters()):
        assert torch.count_nonzero(tensor.grad) > 0


@pytest.mark.parametrize("name", FEATURE_METHODS)
def test_no_projector_for_equal_channels(name):
    assert list(make(name).projectors.parameters()) == []


@pytest.mark.parametrize("name", NAMES)
def test_gradients_without_synchronization(name):
    shapes = ((3, 8, 6), (4, 4, 3))
    student, teacher = view(1, shapes, grad=True), view(2)
    method = make(name, shapes, **({"mask_ratio": 0.0} if name == "MGD" else {}))
    with NoWaiting():
        losses = losses_of(method, student, teacher)
    assert set(losses) == KEYS[name]
    assert all(value.shape == () for value in losses.values())
    sum(losses.values()).backward()
    read = {
        Requires.STUDENT_FEATURES: student.features,
        Requires.STUDENT_LOGITS: [student.logits],
        Requires.EMBEDDING: [student.embedding],
    }
    for required, tensors in read.items():
        for tensor in tensors:
            if required in method.requires:
                assert torch.count_nonzero(tensor.grad) > 0.9 * tensor.numel(), required
            else:
                assert tensor.grad is None, required
    for key, param in method.named_parameters():
        assert torch.count_nonzero(param.grad) > 0, key


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("name", ["DKD", "DIST", "OFA"])
def test_few_rows(name, rows):
    student, method = view(1, rows=rows, grad=True), make(name)
    losses = losses_of(method, student, view(2, rows=rows))
    sum(losses.values()).backward()
    assert all(torch.isfinite(value) for value in losses.values())
    assert all(torch.isfinite(param.grad).all() for param in method.parameters())
    assert torch.isfinite(student.logits.grad).all()


def test_ofa_norm_of_single_row():
    method = make("OFA")
    (norm,) = [m for m in method.branches.modules() if isinstance(m, nn.BatchNorm1d)]
    losses_of(method, view(1), view(2))
    mean = norm.running_mean.clone()
    assert mean.any()
    student, teacher = view(3, rows=1), view(4, rows=1)
    single = losses_of(method, student, teacher)["loss_ofa"]
    assert torch.equal(norm.running_mean, mean)
    assert torch.equal(losses_of(method.eval(), student, teacher)["loss_ofa"], single)


@pytest.mark.parametrize("name", NAMES)
def test_descent_decreases_loss(name):
    student, teacher = view(1, grad=True), view(2)
    method = make(name, **({"fd_weight": 1.0} if name == "MGD" else {}))
    tensors = [*student.features, student.logits, student.embedding, *method.parameters()]
    optimizer = torch.optim.Adam(tensors, lr=0.05)
    values = []
    for _ in range(40):
        total = sum(losses_of(method, student, teacher).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(total.item())
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("autocast, dtype", [(True, torch.bfloat16), (False, torch.float16)])
@pytest.mark.parametrize("name", NAMES)
def test_extreme_inputs_in_half_precision(name, autocast, dtype):
    """Sure networks that disagree: log(softmax) in half precision is −inf here."""
    student, teacher = view(1), view(2)
    halves = {}
    for role, source, sign in (("student", student, 1), ("teacher", teacher, -1)):
        source.logits = torch.zeros_like(source.logits)
        source.logits[:, 0], source.logits[:, 1] = 40.0 * sign, -40.0 * sign
        tensors = [*source.features, source.logits, source.embedding]
        tensors = [(100 * x if x.ndim == 4 else x).to(dtype) for x in tensors]
        if role == "student":
            tensors = [x.requires_grad_() for x in tensors]
        *features, logits, embedding = tensors
        halves[role] = NetworkOutputs(features, logits, embedding, source.labels)
    method = make(name) if autocast else make(name).to(dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        losses = losses_of(method, halves["student"], halves["teacher"])
    for value in losses.values():
        assert value.dtype == torch.float32 and torch.isfinite(value)
    sum(losses.values()).backward()
    for x in (*halves["student"].features, halves["student"].logits, halves["student"].embedding):
        assert x.grad is None or torch.isfinite(x.grad).all()


# Training steps of real detectors.


def detector(name, narrow=False, **options):
    """The digits pair with a method; with a narrow teacher, features need a projector."""
    cfg = pair_config()
    cfg.model.method = dict(type=name, input_size=(64, 64), **options)
    if narrow:
        cfg.model.teacher.neck.out_channels = 48
        cfg.model.teacher.rpn_head.in_channels = 48
        cfg.model.teacher.roi_head.bbox_roi_extractor.out_channels = 48
        cfg.model.teacher.roi_head.bbox_head.in_channels = 48
    return build(cfg)


def teacher_state(model):
    return {name: value.clone() for name, value in model.teacher.state_dict().items()}


@pytest.mark.parametrize("name", NAMES)
def test_two_training_steps(name):
    model = detector(name, narrow=name in FEATURE_METHODS)
    before = teacher_state(model)
    start = {key: param.detach().clone() for key, param in trainable(model).items()}
    optimizer = torch.optim.SGD(trainable(model).values(), lr=1e-2)
    data = batch(model)
    for _ in range(2):
        losses = train_step(model, data, optimizer)
    assert KEYS[name] < set(losses)
    own = {key for key in start if key.startswith("distill.")}
    assert bool(own) == (name not in ("DKD", "DIST"))
    for key, param in trainable(model).items():
        assert param.grad is not None and torch.isfinite(param.grad).all(), key
        if key in own:
            assert torch.count_nonzero(param.grad) > 0, key
            assert not torch.equal(param, start[key]), key

    # Each loss alone reaches the student.
    losses = model(**batch(model, [(3, 96, 64)]), mode="loss")
    for key in KEYS[name]:
        model.zero_grad(set_to_none=True)
        losses[key].backward(retain_graph=True)
        reached = {
            path.split(".")[1]
            for path, param in model.named_parameters()
            if param.grad is not None and path.startswith("student.") and param.grad.any()
        }
        heads = set() if key == "loss_fd" else {"roi_head"}
        assert reached == {"backbone", "neck"} | heads

    model.zero_grad(set_to_none=True)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = model(**data, mode="loss")
    model.parse_losses(losses)[0].backward()
    for key in KEYS[name]:
        assert losses[key].dtype == torch.float32 and torch.isfinite(losses[key])
    assert all(torch.isfinite(param.grad).all() for param in trainable(model).values())

    after = teacher_state(model)
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert all(param.grad is None for param in model.teacher.parameters())
    assert not any(module.training for module in model.teacher.modules())


# Configs.


OVERLAY_VALUES = {
    "DKD": dict(alpha=2.0, beta=0.25, temperature=1.0, kd_weight=1.0),
    "DIST": dict(beta=1.0, gamma=1.0, temperature=1.0, kd_weight=1.0),
    "OFA": dict(eps=1.5, temperature=1.0, ofa_weight=1.0, kd_weight=1.0),
    "PKD": dict(fd_weight=6.0),
    "CWD": dict(fd_weight=10.0, temperature=1.0),
    "MGD": dict(fd_weight=5e-7, mask_ratio=0.45),
}


@pytest.mark.parametrize("name", NAMES)
def test_overlay_values_in_detection(name):
    overlay = Config.fromfile(f"configs/_base_/methods/{name.lower()}.py").method
    method = build_method(overlay)
    assert type(method) is METHODS.get(name)
    assert {key: getattr(method, key) for key in OVERLAY_VALUES[name]} == OVERLAY_VALUES[name]


def test_unknown_argument_fails():
    with pytest.raises(TypeError, match="unexpected keyword argument 'wieght'"):
        detector("PKD", wieght=1.0)


@pytest.mark.parametrize("method", [DKD, DIST, OFA])
def test_other_classes_are_refused(method):
    other = FeatureSpec(SHAPES, NUM_CLASSES + 1, WIDTH)
    with pytest.raises(ValueError, match=f"5 classes .* 6; {method.__name__} compares"):
        method().check_networks(spec(), other)
    # Features alone do not need them.
    PKD().check_networks(spec(), other)


@pytest.mark.parametrize("method", [PKD, CWD, MGD])
def test_other_numbers_of_levels_are_refused(method):
    with pytest.raises(ValueError, match=f"1 feature levels .* 2; {method.__name__} compares"):
        method().check_networks(spec(SHAPES[:1]), spec())
    DKD().check_networks(spec(SHAPES[:1]), spec())
