"""Reference values, gradients, extremes and invariances of the pure loss functions.

The references are loops over Python floats, written from the formulas, without PyTorch.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers.synchronisation import NoSynchronisation
from torch.utils._python_dispatch import TorchDispatchMode

from pat_mmdet.models import losses

KD, DKD, DIST, OFA = losses.kd_loss, losses.dkd_loss, losses.dist_loss, losses.ofa_loss
DISTANCE, ANGLE = losses.rkd_distance_loss, losses.rkd_angle_loss
CC, CRD, HCL = losses.correlation_loss, losses.crd_loss, losses.hcl_loss
CHANNELS = losses.channel_correlation_loss

TARGET = torch.tensor([2, 0, 4, 4, 1, 3])


def normal(*shape, seed=0, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def logits(rows=6, classes=5, dtype=torch.float64):
    return normal(rows, classes, seed=1, dtype=dtype), normal(rows, classes, seed=2, dtype=dtype)


# Every loss as a function of student and teacher alone, with an input shape that suits it.
CASES = {
    "kd": (partial(KD, temperature=2.0), (6, 5)),
    "dkd": (partial(DKD, target=TARGET, alpha=0.7, beta=1.3, temperature=2.0), (6, 5)),
    "dist": (partial(DIST, beta=0.7, gamma=1.3, temperature=2.0), (6, 5)),
    "ofa": (partial(OFA, target=TARGET, eps=1.5, temperature=2.0), (6, 5)),
    "distance": (DISTANCE, (6, 5)),
    "angle": (partial(ANGLE, chunk_size=4), (6, 5)),
    "cc": (CC, (6, 5)),
    "crd": (
        partial(
            CRD,
            z_student=torch.tensor(90.0, dtype=torch.float64),
            z_teacher=torch.tensor(70.0, dtype=torch.float64),
            temperature=0.5,
            num_data=50,
        ),
        (6, 5),
    ),
    "hcl": (HCL, (2, 3, 5, 6)),
    "channel correlation": (
        partial(CHANNELS, weight=torch.tensor([0.5, 1.5, 1.0])),
        (2, 3, 5, 6),
    ),
}
every_loss = pytest.mark.parametrize("name", CASES)


def case(name, rows=None):
    """The loss and its input shape, with another number of samples if ``rows`` is given."""
    loss, shape = CASES[name]
    if rows is not None:
        shape = (rows, *shape[1:])
        if name in ("dkd", "ofa"):
            loss = partial(loss, target=TARGET[:rows])
    return loss, shape


# ---------------------------------------------------------------- references


def softmax(row, temperature=1.0):
    values = [math.exp(v / temperature) for v in row]
    return [v / sum(values) for v in values]


def kl(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q))


def smooth_l1(a, b):
    d = abs(a - b)
    return 0.5 * d * d if d < 1 else d - 0.5


def reference_kd(s, t, tau):
    return tau * tau * np.mean([kl(softmax(b, tau), softmax(a, tau)) for a, b in zip(s, t)])


def reference_dkd(s, t, target, alpha, beta, tau):
    total = 0.0
    for a, b, y in zip(s, t, target):
        p, q = softmax(a, tau), softmax(b, tau)
        total += alpha * kl([q[y], 1 - q[y]], [p[y], 1 - p[y]])
        rest_p = [v / (1 - p[y]) for k, v in enumerate(p) if k != y]
        rest_q = [v / (1 - q[y]) for k, v in enumerate(q) if k != y]
        total += beta * kl(rest_q, rest_p)
    return tau * tau * total / len(s)


def reference_dist(s, t, beta, gamma, tau):
    p, q = np.array([softmax(a, tau) for a in s]), np.array([softmax(b, tau) for b in t])
    rows = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p, q)])
    columns = np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(p.T, q.T)])
    return tau * tau * (beta * (1 - rows) + gamma * (1 - columns))


def reference_ofa(s, t, target, eps, tau):
    total = 0.0
    for a, b, y in zip(s, t, target):
        for k, (p, q) in enumerate(zip(softmax(a, tau), softmax(b, tau))):
            m = 1.0 if k == y else 0.0
            total -= ((q + m) ** eps - m) * math.log(p)
    return total / len(s)


def reference_distance(s, t):
    matrices = []
    for x in (s, t):
        d = [[math.dist(a, b) for b in x] for a in x]
        positive = [v for row in d for v in row if v > 0]
        mean = sum(positive) / len(positive)
        matrices.append([v / mean for row in d for v in row])
    return np.mean([smooth_l1(a, b) for a, b in zip(*matrices)])


def cosine(x, i, j, k):
    a = [p - q for p, q in zip(x[j], x[i])]
    b = [p - q for p, q in zip(x[k], x[i])]
    norms = math.hypot(*a) * math.hypot(*b)
    return sum(p * q for p, q in zip(a, b)) / norms if norms > 0 else 0.0


def reference_angle(s, t):
    n = range(len(s))
    return np.mean(
        [smooth_l1(cosine(s, i, j, k), cosine(t, i, j, k)) for i in n for j in n for k in n]
    )


def reference_cc(s, t):
    total = 0.0
    for i in range(len(s) - 1):
        for d in range(len(s[0])):
            total += abs(s[i][d] - t[i][d]) * abs(s[i + 1][d] - t[i + 1][d])
    return total / (len(s) - 1)


def reference_crd(s, t, z_s, z_t, tau, n):
    total = 0.0
    for scores, z in ((s, z_s), (t, z_t)):
        c = (len(scores[0]) - 1) / n
        for row in scores:
            p = [math.exp(v / tau) / z for v in row]
            total -= math.log(p[0] / (p[0] + c + 1e-7))
            total -= sum(math.log(c / (v + c + 1e-7)) for v in p[1:])
    return total / len(s)


def pooled(x, side):
    """Adaptive average pooling: bin i of n reaches from floor(i·L/n) to ceil((i+1)·L/n)."""
    b, c, h, w = x.shape
    out = np.zeros((b, c, side, side))
    for i in range(side):
        for j in range(side):
            top, bottom = i * h // side, -(-(i + 1) * h // side)
            left, right = j * w // side, -(-(j + 1) * w // side)
            out[:, :, i, j] = x[:, :, top:bottom, left:right].mean((2, 3))
    return out


def reference_hcl(s, t, levels):
    """``levels`` is given by hand: which of 4, 2, 1 the rule keeps is part of the test."""
    total, weights = ((s - t) ** 2).mean(), 1.0
    for position, side in enumerate(levels, 1):
        total += ((pooled(s, side) - pooled(t, side)) ** 2).mean() / 2**position
        weights += 1 / 2**position
    return total / weights


@pytest.mark.parametrize("tau", [1.0, 4.0])
class TestReferenceOfLogits:
    def test_kd(self, tau):
        s, t = logits()
        assert KD(s, t, tau).item() == pytest.approx(reference_kd(s.tolist(), t.tolist(), tau))

    def test_dkd(self, tau):
        s, t = logits()
        expected = reference_dkd(s.tolist(), t.tolist(), TARGET.tolist(), 0.5, 3.0, tau)
        assert DKD(s, t, TARGET, 0.5, 3.0, tau).item() == pytest.approx(expected)

    def test_dist(self, tau):
        s, t = logits()
        expected = reference_dist(s.tolist(), t.tolist(), 0.5, 3.0, tau)
        assert DIST(s, t, 0.5, 3.0, tau).item() == pytest.approx(expected, rel=1e-5)

    @pytest.mark.parametrize("eps", [0.5, 1.0, 1.5])
    def test_ofa(self, tau, eps):
        s, t = logits()
        expected = reference_ofa(s.tolist(), t.tolist(), TARGET.tolist(), eps, tau)
        assert OFA(s, t, TARGET, eps, tau).item() == pytest.approx(expected)


def test_defaults_and_keywords():
    s, t = logits()
    pairs = [
        (KD(s, t), KD(s, t, temperature=1.0)),
        (DKD(s, t, TARGET), DKD(s, t, target=TARGET, alpha=1.0, beta=2.0, temperature=1.0)),
        (DIST(s, t), DIST(s, t, beta=1.0, gamma=1.0, temperature=1.0)),
        (OFA(s, t, TARGET), OFA(s=s, t=t, target=TARGET, eps=1.0, temperature=1.0)),
    ]
    for default, explicit in pairs:
        assert default.shape == () and torch.equal(default, explicit)


def test_distance_reference():
    s, t = normal(7, 4, seed=1), normal(7, 9, seed=2, scale=3.0)
    s[5] = s[2]  # a zero off the diagonal, which the mean leaves out
    assert DISTANCE(s, t).item() == pytest.approx(reference_distance(s.tolist(), t.tolist()))


@pytest.mark.parametrize("chunk_size", [1, 3, 7, 100])
def test_angle_reference(chunk_size):
    s, t = normal(7, 4, seed=1), normal(7, 9, seed=2)
    s[5] = s[2]
    expected = reference_angle(s.tolist(), t.tolist())
    assert ANGLE(s, t, chunk_size).item() == pytest.approx(expected)


def test_rkd_of_more_rows_than_a_chunk():
    s, t = normal(37, 3, seed=1), normal(37, 3, seed=2)
    assert DISTANCE(s, t).item() == pytest.approx(reference_distance(s.tolist(), t.tolist()))
    assert ANGLE(s, t).item() == pytest.approx(reference_angle(s.tolist(), t.tolist()))


def test_cc_reference():
    s, t = logits()
    assert CC(s, t).item() == pytest.approx(reference_cc(s.tolist(), t.tolist()))


@pytest.mark.parametrize("num_data", [50, 3_000_000])  # in the second, 1e-7 counts beside k/n
def test_crd_reference(num_data):
    s, t = logits()
    z_s, z_t = 90.0, 70.0
    expected = reference_crd(s.tolist(), t.tolist(), z_s, z_t, 0.5, num_data)
    actual = CRD(s, t, torch.tensor(z_s), torch.tensor(z_t), 0.5, num_data)
    assert actual.item() == pytest.approx(expected, rel=1e-6)
    swapped = CRD(t, s, torch.tensor(z_t), torch.tensor(z_s), 0.5, num_data)
    assert swapped.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("height", "width", "levels"),
    [
        (1, 1, []),
        (1, 9, []),
        (2, 5, [1]),
        (3, 7, [2, 1]),
        (4, 6, [2, 1]),
        (4, 4, [2, 1]),
        (5, 2, [4, 2, 1]),  # only the height decides: the width is pooled up
        (7, 7, [4, 2, 1]),
        (13, 20, [4, 2, 1]),
    ],
)
def test_hcl_reference(height, width, levels):
    s, t = normal(2, 3, height, width, seed=1), normal(2, 3, height, width, seed=2)
    expected = reference_hcl(s.numpy(), t.numpy(), levels)
    assert HCL(s, t).item() == pytest.approx(expected)


def test_channel_correlation_reference():
    s, t = normal(4, 3, 5, 6, seed=1), normal(4, 3, 5, 6, seed=2)
    weights = torch.tensor([0.2, 0.8, 2.0])
    r = [np.corrcoef(s[:, c].flatten(), t[:, c].flatten())[0, 1] for c in range(3)]
    assert CHANNELS(s, t).item() == pytest.approx(np.mean([1 - x for x in r]), rel=1e-5)
    expected = sum(w * (1 - x) for w, x in zip(weights.tolist(), r)) / 3
    assert CHANNELS(s, t, weights).item() == pytest.approx(expected, rel=1e-5)


def test_channel_correlation_invariances():
    s, t = normal(4, 3, 5, 6, seed=1), normal(4, 3, 5, 6, seed=2)
    scale, offset = torch.tensor([0.1, 3.0, 40.0]), torch.tensor([5.0, -1.0, 70.0])
    moved = [x * scale[:, None, None] + offset[:, None, None] for x in (s, t)]
    for pair in ((moved[0], t), (s, moved[1]), moved):
        torch.testing.assert_close(CHANNELS(*pair), CHANNELS(s, t), rtol=2e-4, atol=0)
    assert CHANNELS(moved[0], s) < 1e-4 and CHANNELS(-moved[0], s) == pytest.approx(2, rel=1e-3)


def test_matched_statistics():
    reference = 3 * normal(4, 3, 5, 6, seed=1) + torch.tensor([1.0, 0, -50])[:, None, None]
    x = normal(2, 3, 7, 2, seed=2).requires_grad_()
    matched = losses.match_channel_statistics(x, reference)
    for moment in (torch.mean, partial(torch.std, correction=0)):
        found, expected = (moment(y, dim=(0, 2, 3)) for y in (matched, reference))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    # Neither scale nor offset of a channel is passed on.
    torch.testing.assert_close(losses.match_channel_statistics(0.1 * x - 2, reference), matched,
                               rtol=1e-3, atol=1e-3)  # fmt: skip
    equal = losses.match_channel_statistics(reference, reference)
    torch.testing.assert_close(equal, reference, rtol=1e-5, atol=1e-5)


def test_spread_weights_have_a_mean_of_one():
    maps = [normal(4, 3, 5, 6, seed=1) * torch.tensor([1.0, 2, 6])[:, None, None],
            10 * normal(4, 2, 3, 3, seed=2)]  # fmt: skip
    spreads = [x.std((0, 2, 3), correction=0) for x in maps]
    alone, together = (losses.spread_weights(maps, across) for across in (False, True))
    for weights, spread in zip(alone, spreads):
        torch.testing.assert_close(weights, spread / spread.mean())
    ratio = torch.cat(together) / torch.cat(spreads)
    torch.testing.assert_close(ratio, ratio[:1].expand(5))
    assert sum(weights.mean() for weights in together) / 2 == pytest.approx(1)
    constant = losses.spread_weights([torch.ones(2, 3, 4, 4, dtype=torch.float16)])
    assert constant[0].dtype == torch.float32 and not constant[0].any()


# ---------------------------------------------------------------- gradients


@every_loss
def test_gradcheck(name):
    loss, shape = case(name)
    s = normal(*shape, seed=1).requires_grad_()
    t = normal(*shape, seed=2).requires_grad_(name != "ofa")
    assert torch.autograd.gradcheck(loss, (s, t))


def test_gradcheck_angle_with_other_shapes():
    s, t = normal(5, 2, 2, seed=1).requires_grad_(), normal(5, 3, seed=2).requires_grad_()
    assert torch.autograd.gradcheck(partial(ANGLE, chunk_size=2), (s, t))
    assert torch.autograd.gradcheck(DISTANCE, (s, t))


@every_loss
def test_gradient_sides(name):
    loss, shape = case(name)
    s, t = normal(*shape, seed=1).requires_grad_(), normal(*shape, seed=2).requires_grad_()
    loss(s, t).backward()
    assert s.grad.abs().max() > 0
    if name == "ofa":
        assert t.grad is None
    else:
        assert t.grad.abs().max() > 0


def test_hcl_gradients_are_opposite():
    s, t = normal(2, 3, 5, 6, seed=1).requires_grad_(), normal(2, 3, 5, 6, seed=2).requires_grad_()
    HCL(s, t).backward()
    torch.testing.assert_close(s.grad, -t.grad)


def test_chunked_angle_equals_unchunked():
    values, gradients = [], []
    for chunk_size in (2, 11):
        s = normal(11, 4, seed=1).requires_grad_()
        value = ANGLE(s, normal(11, 4, seed=2), chunk_size=chunk_size)
        value.backward()
        values.append(value.detach())
        gradients.append(s.grad)
    torch.testing.assert_close(*values)
    torch.testing.assert_close(*gradients)


class LargestTensor(TorchDispatchMode):
    """Record the size of the largest tensor that any operation returns."""

    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, torch.Tensor):
                self.numel = max(self.numel, x.numel())
        return out


def test_angle_memory_is_bounded():
    rows, width, chunk = 48, 8, 4
    s, t = normal(rows, width, seed=1).requires_grad_(), normal(rows, width, seed=2)
    saved = {}  # by address: the chunks all refer to the same inputs
    with (
        LargestTensor() as largest,
        torch.autograd.graph.saved_tensors_hooks(
            lambda x: saved.update({x.data_ptr(): x.numel()}) or x, lambda x: x
        ),
    ):
        loss = ANGLE(s, t, chunk_size=chunk)
        held_for_backward = sum(saved.values())
        loss.backward()
    assert chunk * rows * width < largest.numel <= chunk * rows * rows
    assert held_for_backward < rows * rows


# ---------------------------------------------------------------- extremes


def extremes(dtype, shape):
    """Pairs of student and teacher that break careless code."""
    top = {torch.float16: 6e4, torch.bfloat16: 3e4}[dtype]
    signs, others = normal(*shape, seed=3).sign() * top, normal(*shape, seed=4).sign() * top
    plain, equal_rows = normal(*shape, seed=5), normal(*shape, seed=6)
    equal_rows[1:] = equal_rows[:1].clone()
    zeros, spikes = torch.zeros(shape, dtype=torch.float64), torch.full(shape, -top).double()
    spikes[..., 0] = top
    inputs = {
        "large": (signs, others),
        "opposite": (signs, -signs),
        "identical and large": (signs, signs),
        "identical": (plain, plain),
        "student constant": (zeros, plain),
        "student constant and large": (zeros + top, signs),
        "teacher constant": (plain, zeros),
        "both constant": (zeros, zeros),
        "certain of the first": (spikes, plain),
        "teacher certain of the first": (plain, spikes),
        "certain and wrong": (spikes, spikes.flip(-1)),
        "equal rows": (equal_rows, plain),
        "equal rows of the teacher": (plain, equal_rows),
    }
    return {key: (s.to(dtype), t.to(dtype)) for key, (s, t) in inputs.items()}


@every_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extremes_are_finite(name, dtype):
    loss, shape = case(name)
    for key, (s, t) in extremes(dtype, shape).items():
        s, t = s.clone().requires_grad_(), t.clone().requires_grad_()
        value = loss(s, t)
        assert value.isfinite(), key
        value.backward()
        assert s.grad.dtype == dtype and s.grad.isfinite().all(), key
        assert t.grad is None or t.grad.isfinite().all(), key
        if name in ("kd", "dkd", "dist", "ofa", "distance", "angle", "crd"):
            assert s.grad.abs().max() <= 4.0, key  # whatever the logits, the slope is moderate
        # The upcast is the first thing done, so upcast inputs give the same value.
        assert torch.equal(loss(s.float(), t.float()), value), key


@pytest.mark.parametrize("loss", [DISTANCE, ANGLE])
def test_rkd_gradient_of_equal_rows(loss):
    s = normal(6, 5, seed=1, dtype=torch.float32)
    s[4] = s[2]
    s.requires_grad_()
    loss(s, normal(6, 5, seed=2, dtype=torch.float32)).backward()
    assert 0 < s.grad.abs().max() < 1.0

    collapsed = torch.ones(6, 5, requires_grad=True)
    value = loss(collapsed, normal(6, 5, seed=2, dtype=torch.float32))
    value.backward()
    assert value > 0 and torch.equal(collapsed.grad, torch.zeros(6, 5))


def test_rkd_distance_with_offset():
    s = torch.tensor([[1000.0, 0.0], [1000.0, 0.0], [1000.0, 1.0]])
    t = torch.tensor([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    assert DISTANCE(s, t) == 0


def test_certain_target_does_not_cancel():
    """1 − p_target is 0 in float32 here; TCKD must still see 2·e^-50."""
    s, t = torch.tensor([[50.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, 0.0]])
    target = torch.tensor([0])
    expected = 1 / 3 * math.log(1 / 3) + 2 / 3 * (math.log(2 / 3) - (math.log(2) - 50))
    assert DKD(s, t, target, 1.0, 0.0, 1.0).item() == pytest.approx(expected, rel=1e-5)


def test_dist_of_constant_rows_is_uncorrelated():
    t = normal(4, 3, seed=1)
    assert DIST(torch.zeros(4, 3).double(), t, 2.0, 5.0).item() == pytest.approx(7.0)
    assert DIST(t[:1], t[:1], 2.0, 5.0).item() == pytest.approx(5.0)  # no column to compare


def test_crd_scores_that_overflow_exp():
    s = torch.tensor([[200.0, -200.0, 300.0]])
    one = torch.tensor(1.0)
    c = 2 / 10
    # log(P/(P+c)) is 0 for P = e^400, log(c/(P+c)) is log c - 600 for P = e^600.
    expected = -(math.log(c) - 600) * 2
    assert CRD(s, s, one, one, 0.5, 10).item() == pytest.approx(expected, rel=1e-5)


# ---------------------------------------------------------------- precision


@every_loss
def test_result_is_float32(name):
    loss, shape = case(name)
    if name == "crd":
        loss = partial(loss, z_student=torch.tensor(90.0), z_teacher=torch.tensor(70.0))
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        s, t = normal(*shape, seed=1, dtype=dtype), normal(*shape, seed=2, dtype=dtype)
        assert loss(s, t).dtype == torch.float32
    assert loss(s.double(), t.double()).dtype == torch.float64


@every_loss
def test_autocast_changes_nothing(name):
    loss, shape = case(name)
    results = []
    for enabled in (False, True):
        s = normal(*shape, seed=1, dtype=torch.float32).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = loss(s, normal(*shape, seed=2, dtype=torch.float32))
        value.backward()
        results.append((value.detach(), s.grad))
    for plain, under_autocast in zip(*results):
        assert torch.equal(plain, under_autocast)
    precise = loss(normal(*shape, seed=1), normal(*shape, seed=2))
    assert results[1][0].item() == pytest.approx(precise.item(), rel=1e-5)


def test_mixed_input_types():
    s, t = logits()
    assert torch.equal(KD(s.half(), t.float()), KD(s.half().float(), t.float()))


# ---------------------------------------------------------------- properties


@pytest.mark.parametrize("name", ["kd", "dkd", "distance", "angle", "cc", "hcl"])
def test_zero_for_equal_inputs(name):
    loss, shape = case(name)
    x = normal(*shape, seed=1, dtype=torch.float32)
    assert loss(x, x.clone()) == 0


def test_dist_is_zero_for_equal_inputs():
    s, _ = logits(rows=12)
    assert DIST(s, s.clone()).item() == pytest.approx(0.0, abs=1e-5)


@every_loss
def test_not_zero_for_other_inputs(name):
    loss, shape = case(name)
    assert loss(normal(*shape, seed=1), normal(*shape, seed=2)) > 1e-3


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "ofa"])
def test_shift_of_logits_changes_nothing(name):
    loss, _ = case(name)
    s, t = logits()
    shifted = loss(s + normal(6, 1, seed=7, scale=10.0), t + normal(6, 1, seed=8, scale=10.0))
    torch.testing.assert_close(shifted, loss(s, t))


def test_kd_decomposes_into_dkd():
    """Zhao et al., equation 6: KD = TCKD + (1 − p_t^T) · NCKD, row by row."""
    s, t = logits()
    for i in range(len(s)):
        row, y = slice(i, i + 1), TARGET[i : i + 1]
        rest = 1 - t[row].softmax(1)[0, y]
        parts = DKD(s[row], t[row], y, 1.0, rest.item(), 1.0)
        torch.testing.assert_close(parts, KD(s[row], t[row], 1.0))


def test_ofa_eps_one_is_cross_entropy():
    s, t = logits()
    expected = KD(s, t) - (t.softmax(1) * t.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(OFA(s, t, TARGET, 1.0), expected)


def test_ofa_depends_on_its_target():
    s, t = logits()
    assert not torch.isclose(OFA(s, t, TARGET, 1.5), OFA(s, t, (TARGET + 1) % 5, 1.5))


@pytest.mark.parametrize("beta_gamma", [(1.0, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_dist_permutations(beta_gamma):
    s, t = logits()
    rows, columns = torch.randperm(6), torch.randperm(5)
    expected = DIST(s, t, *beta_gamma)
    torch.testing.assert_close(DIST(s[rows], t[rows], *beta_gamma), expected)
    torch.testing.assert_close(DIST(s[:, columns], t[:, columns], *beta_gamma), expected)
    assert not torch.isclose(DIST(s.roll(1, 0), t, *beta_gamma), expected)


def test_dist_affine_invariance():
    p = logits(rows=12)[1].softmax(1)
    closer_to_uniform = 0.4 * p + 0.6 / 5  # again distributions, each row an affine map of its own
    value = DIST(closer_to_uniform.log(), p.log(), 1.0, 1.0)
    assert value.item() == pytest.approx(0.0, abs=1e-5)
    assert KD(closer_to_uniform.log(), p.log()) > 1e-2


def test_rkd_invariances():
    s, t = normal(7, 4, seed=1), normal(7, 4, seed=2)
    rotation, _ = torch.linalg.qr(normal(4, 4, seed=3))
    moved = 5.0 * s @ rotation + normal(1, 4, seed=4)
    for loss in (DISTANCE, ANGLE):
        torch.testing.assert_close(loss(moved, t), loss(s, t))
        torch.testing.assert_close(loss(s, t), loss(t, s))
        assert loss(moved, s).item() == pytest.approx(0.0, abs=1e-12)
        order = torch.randperm(7)
        torch.testing.assert_close(loss(s[order], t[order]), loss(s, t))


def test_rkd_flattens_each_sample():
    s, t = normal(4, 2, 3, seed=1), normal(4, 5, seed=2)
    for loss in (DISTANCE, ANGLE):
        torch.testing.assert_close(loss(s, t), loss(s.reshape(4, 6), t))


def test_crd_is_contrastive():
    z = torch.tensor(50.0)
    low, high = torch.zeros(2, 4), torch.zeros(2, 4)
    high[:, 0] = 1.0
    negatives = torch.zeros(2, 4)
    negatives[:, 1:] = 1.0
    args = (z, z, 0.5, 50)
    assert CRD(high, low, *args) < CRD(low, low, *args) < CRD(negatives, low, *args)
    assert CRD(low, high, *args) < CRD(low, low, *args) < CRD(low, negatives, *args)


# ---------------------------------------------------------------- edges and errors


@every_loss
def test_empty_batch_is_a_connected_zero(name):
    loss, shape = case(name, rows=0)
    s, t = torch.zeros(shape, requires_grad=True), torch.zeros(shape, requires_grad=True)
    value = loss(s, t)
    assert value == 0 and value.shape == ()
    value.backward()
    assert s.grad is not None and s.grad.shape == shape


@every_loss
def test_single_sample_is_finite(name):
    loss, shape = case(name, rows=1)
    s = normal(*shape, seed=1).requires_grad_()
    value = loss(s, normal(*shape, seed=2))
    value.backward()
    assert value.isfinite() and s.grad.isfinite().all()
    if name in ("distance", "angle", "cc"):
        assert value == 0  # they compare samples with each other


@every_loss
def test_shape_mismatch_names_both_shapes(name):
    loss, shape = case(name)
    other = (shape[0] + 1, *shape[1:])
    with pytest.raises(ValueError) as error:
        loss(torch.zeros(shape), torch.zeros(other))
    assert str(shape) in str(error.value) and str(other) in str(error.value)


@pytest.mark.parametrize("name", ["kd", "dkd", "dist", "ofa", "cc", "crd", "hcl"])
def test_broadcastable_shapes_are_refused(name):
    loss, shape = case(name)
    for other in [(1, *shape[1:]), (*shape[:-1], 1), shape[1:]]:
        with pytest.raises(ValueError, match="got student"):
            loss(torch.zeros(shape), torch.zeros(other))
        with pytest.raises(ValueError, match="got student"):
            loss(torch.zeros(other), torch.zeros((*other[:-1], other[-1] + 1)))


@every_loss
def test_wrong_number_of_dimensions(name):
    loss, shape = case(name)
    fewer = torch.zeros(shape[1:] if name == "hcl" else shape[:1])
    with pytest.raises(ValueError, match="got student"):
        loss(fewer, fewer)


@pytest.mark.parametrize("loss", [DKD, OFA])
@pytest.mark.parametrize("target_shape", [(5,), (7,), (6, 1), (6, 5)])
def test_target_of_another_shape(loss, target_shape):
    with pytest.raises(ValueError, match="target"):
        loss(*logits(), torch.zeros(target_shape, dtype=torch.int64))


def test_dkd_and_crd_need_two_columns():
    one = torch.zeros(6, 1)
    with pytest.raises(ValueError, match="two classes"):
        DKD(one, one, torch.zeros(6, dtype=torch.int64))
    with pytest.raises(ValueError, match="k >= 1"):
        CRD(one, one, torch.tensor(1.0), torch.tensor(1.0), 0.1, 10)


@every_loss
def test_no_synchronisation(name):
    loss, shape = case(name)
    s, t = normal(*shape, seed=1).requires_grad_(), normal(*shape, seed=2)
    with NoSynchronisation():
        loss(s, t).backward()


def test_synchronization_guard():
    x = torch.ones(3)
    for careless in (lambda: x[0].item(), lambda: bool(x.sum() > 0), lambda: x[x > 0].mean()):
        with pytest.raises(AssertionError), NoSynchronisation():
            careless()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@every_loss
def test_on_the_gpu(name):
    loss, shape = case(name)
    if isinstance(loss, partial):
        moved = {
            k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in loss.keywords.items()
        }
        on_gpu = partial(loss.func, **moved)
    else:
        on_gpu = loss
    s, t = normal(*shape, seed=1), normal(*shape, seed=2)
    s_gpu, t_gpu = s.cuda().requires_grad_(), t.cuda()
    s.requires_grad_()
    on_gpu(s_gpu, t_gpu).backward()  # a first call may load kernels, which waits
    s_gpu.grad = None
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        value = on_gpu(s_gpu, t_gpu)
        value.backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    expected = loss(s, t)
    expected.backward()
    torch.testing.assert_close(value.cpu(), expected)
    torch.testing.assert_close(s_gpu.grad.cpu(), s.grad)
