"""CC, RKD and CRD: values, gradients, and the memory of CRD in EMA, checkpoints and processes."""

import copy
import math
import multiprocessing
from pathlib import Path

import pytest
import torch
from helpers.detectors import batch, build, pair_config, train_step, trainable
from helpers.methods import NoWaiting, build_layers, close, normal, numbers
from mmengine.config import Config
from mmengine.model import ExponentialMovingAverage
from mmengine.runner.checkpoint import load_state_dict
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from pat_mmdet.models.losses import correlation_loss, rkd_angle_loss, rkd_distance_loss
from pat_mmdet.models.methods import CC, CRD, RKD
from pat_mmdet.registry import METHODS
from pat_mmdet.structures import FeatureSpec, NetworkOutputs

STUDENT, TEACHER, ROWS = 6, 9, 8
NUM_DATA, WIDTH, NEGATIVES = 20, 5, 7
BANKS = ("bank_student", "bank_teacher")
CONSTANTS = ("z_student", "z_teacher")
MEMORY = {*BANKS, *CONSTANTS}
NAMES = ("CC", "RKD", "CRD")
KEYS = {
    "CC": {"loss_cc"},
    "RKD": {"loss_rkd_distance", "loss_rkd_angle"},
    "CRD": {"loss_crd"},
}


class Known(CRD):
    """Negatives that depend on the image alone, so that a batch can be divided."""

    def draw_negatives(self, indices):
        others = 3 * torch.arange(self.num_negatives) + 1
        return (7 * indices[:, None] + others) % self.num_data


def make(kind, seed=0, **options):
    kind = METHODS.get(kind) if isinstance(kind, str) else kind
    if issubclass(kind, CRD):
        options = dict(num_data=NUM_DATA, width=WIDTH, num_negatives=NEGATIVES, **options)
    torch.manual_seed(seed)
    specs = FeatureSpec((), embedding=STUDENT), FeatureSpec((), embedding=TEACHER)
    return build_layers(kind(**options), *specs)


def views(seed=0, rows=ROWS, indices=None, grad=False, dtype=torch.float32, scale=1.0):
    """The embeddings of both networks, and the places of the images for the student."""
    own = normal(rows, STUDENT, seed=seed, scale=scale).to(dtype).requires_grad_(grad)
    target = normal(rows, TEACHER, seed=seed + 100, scale=scale).to(dtype)
    if indices is None:
        order = torch.randperm(NUM_DATA, generator=torch.Generator().manual_seed(seed))
        indices = order[torch.arange(rows) % NUM_DATA]
    return NetworkOutputs(embedding=own, indices=torch.as_tensor(indices)), NetworkOutputs(
        embedding=target
    )


def step(method, student, teacher):
    return method(student, teacher, None)


def memory(method):
    return {name: method.state_dict()[name] for name in sorted(MEMORY)}


def snapshot(method):
    return {name: value.clone() for name, value in memory(method).items()}


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


# Reference values of CRD: loops in double precision, written from the paper's formulas. The losses
# of CC and RKD have theirs in test_losses.py.


def linear(layer, x):
    return numbers(x.double() @ layer.weight.double().T + layer.bias.double())


def dot(a, b):
    return sum(x * y for x, y in zip(a, b))


def unit(row):
    length = math.sqrt(dot(row, row))
    return [x / length for x in row]


@pytest.mark.parametrize("weight", [0.02, 0.5])
def test_cc_value(weight):
    student, teacher = views()
    method = make("CC", width=WIDTH, **({} if weight == 0.02 else {"cc_weight": weight}))
    expected = correlation_loss(
        method.student_layer(student.embedding), method.teacher_layer(teacher.embedding)
    )
    torch.testing.assert_close(step(method, student, teacher)["loss_cc"], weight * expected)
    assert make("CC").student_layer.weight.shape == (128, STUDENT)
    assert make("CC").teacher_layer.weight.shape == (128, TEACHER)


@pytest.mark.parametrize("weights", [(25.0, 50.0), (0.5, 0.25)])
def test_rkd_value(weights):
    student, teacher = views(rows=6)
    named = dict(zip(("distance_weight", "angle_weight"), weights))
    method = make("RKD", **({} if weights[0] == 25 else named))
    losses = step(method, student, teacher)
    embeddings = student.embedding, teacher.embedding
    distance, angle = rkd_distance_loss(*embeddings), rkd_angle_loss(*embeddings)
    torch.testing.assert_close(losses["loss_rkd_distance"], weights[0] * distance)
    torch.testing.assert_close(losses["loss_rkd_angle"], weights[1] * angle)


class Reference:
    """CRD by loops; begins with the banks of a method."""

    def __init__(self, method, momentum, temperature):
        self.layers = method.student_layer, method.teacher_layer
        # The student is scored against the teacher's bank, and the other way round.
        self.banks = [numbers(memory(method)[name]) for name in BANKS]
        self.z = None
        self.momentum, self.temperature = momentum, temperature

    def step(self, embeddings, indices, negatives):
        own = [list(map(unit, linear(layer, x))) for layer, x in zip(self.layers, embeddings)]
        powers = []
        for side in (0, 1):
            bank = self.banks[1 - side]
            powers.append(
                [
                    [math.exp(dot(row, bank[j]) / self.temperature) for j in (index, *others)]
                    for row, index, others in zip(own[side], indices, negatives)
                ]
            )
        if self.z is None:
            self.z = [
                NUM_DATA * sum(map(sum, side)) / (len(indices) * (1 + NEGATIVES)) for side in powers
            ]
        noise, total = NEGATIVES / NUM_DATA, 0.0
        for side, z in zip(powers, self.z):
            for first, *rest in side:
                total -= math.log(first / z / (first / z + noise + 1e-7))
                total -= sum(math.log(noise / (power / z + noise + 1e-7)) for power in rest)
        for rows, bank in zip(own, self.banks):
            for row, index in zip(rows, indices):
                bank[index] = unit(
                    [self.momentum * a + (1 - self.momentum) * b for a, b in zip(bank[index], row)]
                )
        return total / len(indices)


@pytest.mark.parametrize("momentum, temperature, weight", [(0.5, 0.07, 1.0), (0.9, 0.5, 0.3)])
def test_crd_value_constants_and_banks(momentum, temperature, weight):
    options = dict(momentum=momentum, temperature=temperature, crd_weight=weight)
    method = make("CRD", **({} if momentum == 0.5 else options))
    reference = Reference(method, momentum, temperature)
    for number in range(3):
        student, teacher = views(seed=number)
        torch.manual_seed(number)
        negatives = method.draw_negatives(student.indices)
        assert negatives.shape == (ROWS, NEGATIVES)
        torch.manual_seed(number)
        loss = step(method, student, teacher)["loss_crd"]
        expected = reference.step(
            (student.embedding, teacher.embedding), student.indices.tolist(), negatives.tolist()
        )
        close(loss, weight * expected)
        found = memory(method)
        for name, z in zip(CONSTANTS, reference.z):
            close(found[name], z)
        for name, bank in zip(BANKS, reference.banks):
            bank = torch.tensor(bank, dtype=torch.float64)
            torch.testing.assert_close(found[name].double(), bank, rtol=1e-5, atol=1e-6)


# Properties of all three.


@pytest.mark.parametrize("name", NAMES)
def test_gradients_without_synchronization(name):
    method = make(name)
    step(method, *views(seed=5))
    student, teacher = views(grad=True)
    with NoWaiting():
        losses = step(method, student, teacher)
    assert set(losses) == KEYS[name]
    assert bool(list(method.parameters())) == (name != "RKD")
    for key, value in losses.items():
        assert value.shape == ()
        student.embedding.grad = None
        value.backward()
        assert torch.count_nonzero(student.embedding.grad) == student.embedding.numel(), key
    for key, param in method.named_parameters():
        assert torch.isfinite(param.grad).all() and torch.count_nonzero(param.grad) > 0, key
    if name == "CRD":
        assert not any(value.requires_grad for value in method._memory.tensors.values())


@pytest.mark.parametrize("name", NAMES)
def test_descent_decreases_loss(name):
    method = make(name)
    student, teacher = views(grad=True)
    optimizer = torch.optim.Adam([student.embedding, *method.parameters()], lr=0.05)
    values = []
    for _ in range(40):
        total = sum(step(method, student, teacher).values())
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        values.append(total.item())
    assert values[-1] < 0.9 * values[0]


@pytest.mark.parametrize("autocast, dtype", [(True, torch.bfloat16), (False, torch.float16)])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision_is_finite(name, autocast, dtype):
    student, teacher = views(grad=True, dtype=dtype, scale=100.0)
    method = make(name) if autocast else make(name).to(dtype)
    with torch.autocast("cpu", dtype=dtype, enabled=autocast):
        losses = step(method, student, teacher)
    for value in losses.values():
        assert value.dtype == torch.float32 and torch.isfinite(value)
    sum(losses.values()).backward()
    assert torch.isfinite(student.embedding.grad).all()
    assert all(torch.isfinite(param.grad).all() for param in method.parameters())
    if name == "CRD":
        for value in memory(method).values():
            assert value.dtype == torch.float32 and torch.isfinite(value).all()


@pytest.mark.parametrize("name", ["CC", "RKD"])
def test_detector_training_step(name):
    cfg = pair_config()
    cfg.model.method = dict(type=name, input_size=(64, 64))
    model = build(cfg)
    before = {key: value.clone() for key, value in model.teacher.state_dict().items()}
    losses = train_step(model, batch(model))
    assert KEYS[name] < set(losses)
    for key, param in trainable(model).items():
        assert param.grad is not None and torch.isfinite(param.grad).all(), key
        if key.startswith("distill."):
            assert torch.count_nonzero(param.grad) > 0, key
    assert all(torch.equal(before[k], value) for k, value in model.teacher.state_dict().items())
    assert all(param.grad is None for param in model.teacher.parameters())


def test_crd_is_not_for_detectors():
    cfg = pair_config()
    cfg.model.method = dict(type="CRD", num_data=24, input_size=(64, 64))
    with pytest.raises(ValueError, match="CRD"):
        build(cfg)


# RKD on some of the rows.


def test_rkd_few_rows():
    student, teacher = views(rows=9)
    everything = step(make("RKD", max_rows=None), student, teacher)
    for max_rows in (9, 10, 256):
        assert same(step(make("RKD", max_rows=max_rows), student, teacher), everything)
    fewer = step(make("RKD", max_rows=8), student, teacher)
    assert not any(torch.equal(fewer[key], everything[key]) for key in fewer)


@pytest.mark.parametrize("rows, max_rows", [(9, 8), (31, 7), (40, 20)])
def test_rkd_row_sampling(rows, max_rows):
    student, teacher = views(rows=rows, grad=True)
    chosen = [i * rows // max_rows for i in range(max_rows)]
    gaps = {b - a for a, b in zip(chosen, [*chosen[1:], rows])}
    assert gaps <= {rows // max_rows, rows // max_rows + 1}
    method = make("RKD", max_rows=max_rows)
    with NoWaiting():
        losses = step(method, student, teacher)
    part = (
        NetworkOutputs(embedding=student.embedding[chosen]),
        NetworkOutputs(embedding=teacher.embedding[chosen]),
    )
    assert same(losses, step(make("RKD", max_rows=None), *part))
    sum(losses.values()).backward()
    assert student.embedding.grad.any(1).nonzero().flatten().tolist() == chosen


def test_rkd_rows_per_image():
    """Two images of 512 RoIs: each gives half of the rows, and the same share of foreground."""
    taken = make("RKD")._spaced(torch.arange(1024.0)[:, None]).flatten()
    assert len(taken) == 256
    for first in (0, 512):
        assert ((taken >= first) & (taken < first + 512)).sum() == 128
        assert ((taken >= first) & (taken < first + 128)).sum() == 32


# The memory of CRD.


def test_crd_bank_initialization():
    method = make("CRD")
    after = torch.rand(3)
    torch.manual_seed(0)
    nn.Linear(STUDENT, WIDTH), nn.Linear(TEACHER, WIDTH)
    assert torch.equal(torch.rand(3), after)
    other = make("CRD", seed=1)
    assert same(memory(method), memory(other))
    assert not torch.equal(method.student_layer.weight, other.student_layer.weight)
    first, second = (memory(method)[name] for name in BANKS)
    assert first.shape == second.shape == (NUM_DATA, WIDTH)
    assert not torch.equal(first, second)
    for bank in (first, second):
        torch.testing.assert_close(bank.norm(dim=1), torch.ones(NUM_DATA))


def test_crd_negatives_are_uniform():
    method = make("CRD")
    method.num_negatives = 10000
    torch.manual_seed(0)
    drawn = method.draw_negatives(torch.arange(4))
    assert drawn.dtype == torch.int64 and not torch.equal(drawn[0], drawn[1])
    counts = drawn.flatten().bincount(minlength=NUM_DATA)
    assert len(counts) == NUM_DATA
    assert ((counts - 2000).abs() < 250).all()


def test_crd_bank_update():
    method = make("CRD").eval()
    before = snapshot(method)
    step(method, *views(indices=[3, 1, 4, 15, 9, 2, 6, 5]))
    assert all(torch.equal(memory(method)[name], before[name]) for name in BANKS)
    method.train()
    step(method, *views(indices=[3, 1, 4, 15, 9, 2, 6, 5]))
    for name in BANKS:
        changed = (memory(method)[name] != before[name]).any(1)
        assert sorted(changed.nonzero().flatten().tolist()) == [1, 2, 3, 4, 5, 6, 9, 15]


class Writes(TorchDispatchMode):
    """Notes what is written to indexed rows."""

    def __init__(self):
        super().__init__()
        self.values = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ == "index_put_":
            self.values.append(args[2].clone())
        return func(*args, **(kwargs or {}))


def test_crd_duplicate_indices():
    indices = torch.tensor([7, 2, 7, 7, 0, 2, 11, 12])
    last = [3, 4, 5, 6, 7]
    student, teacher = views(indices=indices)
    method, other = make("CRD"), make("CRD")
    with Writes() as writes:
        step(method, student, teacher)
    assert len(writes.values) == 2
    for values in writes.values:
        # On CUDA any of the writes to a row may win.
        assert torch.equal(values[[0, 2]], values[[3, 3]]) and torch.equal(values[1], values[5])
    part = (
        NetworkOutputs(embedding=student.embedding[last], indices=indices[last]),
        NetworkOutputs(embedding=teacher.embedding[last]),
    )
    step(other, *part)
    for name in BANKS:
        torch.testing.assert_close(memory(method)[name], memory(other)[name])


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_crd_skips_non_finite_rows(value):
    method = make("CRD")
    step(method, *views())
    before = snapshot(method)
    student, teacher = views(seed=1, indices=range(ROWS))
    student.embedding[2, 1] = value
    step(method, student, teacher)
    after = memory(method)
    assert all(torch.isfinite(value).all() for value in after.values())
    assert torch.equal(after["bank_student"][2], before["bank_student"][2])
    assert not torch.equal(after["bank_student"][3], before["bank_student"][3])


def test_crd_invalid_indices():
    student, teacher = views()
    for indices, found in ((None, "none"), (torch.arange(3), "3")):
        with pytest.raises(ValueError, match=f"got {found} for 8 rows. It is for classification"):
            step(make("CRD"), NetworkOutputs(embedding=student.embedding, indices=indices), teacher)
    for indices, found in (([0] * 7 + [NUM_DATA], "0 to 20"), ([-1] + [3] * 7, "-1 to 3")):
        with pytest.raises(ValueError, match=f"images {found}, but num_data is 20; set model"):
            step(make("CRD"), *views(indices=indices))


def test_crd_memory_round_trip():
    method = make("CRD")
    for seed in range(2):
        step(method, *views(seed=seed))
    assert list(method.buffers()) == []
    state = {key: value.clone() for key, value in method.state_dict().items()}
    assert set(state) == {*MEMORY, *dict(method.named_parameters())}
    for assign in (False, True):
        other = make("CRD")
        step(other, *views(seed=9))
        result = other.load_state_dict(state, assign=assign)
        assert not result.missing_keys and not result.unexpected_keys
        assert list(other.buffers()) == [] and same(memory(other), memory(method))
        torch.manual_seed(3)
        expected = step(copy.deepcopy(method).eval(), *views(seed=4))
        torch.manual_seed(3)
        assert same(step(other.eval(), *views(seed=4)), expected)
        assert same(memory(other), memory(method)), "Z is not taken anew"


def test_crd_unset_constants():
    state, method = make("CRD").state_dict(), make("CRD")
    step(method, *views())
    method.load_state_dict(state)
    assert all(memory(method)[name] == -1 for name in CONSTANTS)
    assert torch.isfinite(step(method, *views())["loss_crd"])
    assert all(memory(method)[name] > 0 for name in CONSTANTS)


def test_crd_memory_mismatch():
    state = make("CRD").state_dict()
    missing = {key: value for key, value in state.items() if key != "bank_teacher"}
    assert make("CRD").load_state_dict(missing, strict=False).missing_keys == ["bank_teacher"]
    with pytest.raises(RuntimeError, match=r"size mismatch for bank_student.*\[19, 5\]"):
        make("CRD").load_state_dict({**state, "bank_student": torch.zeros(19, WIDTH)})


def test_crd_bank_device_and_dtype():
    model = nn.Sequential(make("CRD"))
    twin = copy.deepcopy(model)
    before = snapshot(model[0])
    for cast in (model.half, model.double, lambda: model.to(torch.bfloat16)):
        cast()
        assert same(memory(model[0]), before)
    twin.to("meta")
    assert {value.device.type for value in memory(model[0]).values()} == {"meta"}


def test_deep_copy_shares_memory():
    method = make("CRD")
    step(method, *views())
    twin = copy.deepcopy(method)
    assert set(twin.state_dict()) == set(dict(method.named_parameters()))
    step(method, *views(seed=1))
    torch.manual_seed(0)
    expected = step(copy.deepcopy(method).eval(), *views(seed=2))
    torch.manual_seed(0)
    assert same(step(twin.eval(), *views(seed=2)), expected)
    before = snapshot(method)
    foreign = make("CRD").state_dict()
    result = twin.load_state_dict(foreign, strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    assert same(memory(method), before)
    assert not copy.deepcopy(twin).state_dict().keys() & MEMORY


@pytest.mark.parametrize("update_buffers", [True, False])
def test_ema_leaves_crd_memory(update_buffers, capsys):
    method = make("CRD")
    ema = ExponentialMovingAverage(method, momentum=0.1, update_buffers=update_buffers)
    for seed in range(3):
        step(method, *views(seed=seed))
        before = snapshot(method)
        ema.update_parameters(method)
        assert same(memory(method), before)
    assert not {key for key in ema.state_dict() if key.split(".")[-1] in MEMORY}
    assert not set(ema.avg_parameters) & MEMORY
    # What EMAHook does where a checkpoint has no averages.
    load_state_dict(ema.module, make("CRD").state_dict(), strict=True)
    assert "unexpected" not in capsys.readouterr().out
    assert same(memory(method), before)


def run_steps(folder, rank, processes):
    """Two steps on this process's share of the joint batches."""
    method = make(Known)
    losses, share = [], slice(rank * ROWS // processes, (rank + 1) * ROWS // processes)
    # In the second batch images come twice, in one process and in both.
    for seed, indices in enumerate([None, [4, 5, 4, 6, 5, 9, 1, 4]]):
        student, teacher = views(seed=seed, indices=indices)
        student.embedding, student.indices = student.embedding[share], student.indices[share]
        teacher.embedding = teacher.embedding[share]
        losses.append(step(method, student, teacher)["loss_crd"].detach())
    state = {**memory(method), "losses": torch.stack(losses)}
    torch.save(state, folder / f"{processes}_{rank}.pth")


def join_and_run(folder, rank):
    store = f"file://{folder / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=rank, world_size=2)
    run_steps(folder, rank, 2)
    torch.distributed.destroy_process_group()


def test_crd_in_two_processes(tmp_path):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=join_and_run, args=(tmp_path, rank)) for rank in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    assert [process.exitcode for process in processes] == [0, 0]
    run_steps(tmp_path, 0, 1)
    names = ("1_0", "2_0", "2_1")
    joint, first, second = (torch.load(tmp_path / f"{name}.pth") for name in names)
    for key in MEMORY:
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], joint[key])
    torch.testing.assert_close((first["losses"] + second["losses"]) / 2, joint["losses"])


# Configs.


OVERLAYS = {
    "CC": (CC, {}, dict(cc_weight=0.02)),
    "RKD": (RKD, {}, dict(distance_weight=25.0, angle_weight=50.0, max_rows=None)),
    "CRD": (
        CRD,
        dict(num_data=30),
        dict(num_data=30, num_negatives=16384, momentum=0.5, temperature=0.07, crd_weight=1.0),
    ),
}


@pytest.mark.parametrize("name", NAMES)
def test_overlays_in_classification(name):
    kind, extra, values = OVERLAYS[name]
    overlay = Config.fromfile(f"configs/_base_/methods/{name.lower()}.py").method
    of_task = Path(f"configs/_base_/methods/classification/{name.lower()}.py")
    if of_task.is_file():
        overlay.update(Config.fromfile(of_task).method)
    options = {**overlay, **extra}
    assert METHODS.get(options.pop("type")) is kind
    method = kind(**options)
    assert {key: getattr(method, key) for key in values} == values
    if name != "RKD":
        build_layers(method, FeatureSpec((), embedding=4), FeatureSpec((), embedding=3))
        assert method.student_layer.weight.shape == (128, 4)
        assert method.teacher_layer.weight.shape == (128, 3)


def test_rkd_overlay_in_detection():
    overlay = Config.fromfile("configs/_base_/methods/rkd.py").method
    assert overlay.max_rows == 256


def test_crd_needs_the_number_of_images():
    spec = FeatureSpec((), embedding=4)
    with pytest.raises(ValueError, match=r"set model.method.num_data to their number"):
        build_layers(CRD(), spec, spec)
