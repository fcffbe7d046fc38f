"""Two steps of the classification configs with every method, on random images.

The ordinary run has every pair once, on small images: each teacher by PAT with a convolutional
student and with another, the other pairs by the other methods in turn. Every pair with every
method, on images of its config's size, is run by ``-m full``.
"""

import copy
from itertools import cycle

import pytest
import torch
from helpers import classifiers
from helpers.classifiers import check_prompts
from helpers.configs import (
    CNNS,
    OVERLAYS,
    PAIRS,
    PUBLISHED,
    build,
    load,
    pair_name,
    shrink,
    untrained,
)
from mmengine.optim import build_optim_wrapper
from mmpretrain.structures import DataSample

from pat_mmdet.utils import apply_method, student_model

METHODS = [name for name in OVERLAYS if name not in ("mgd", "cwd", "pkd")]
OTHERS = [name for name in METHODS if name != "pat"]
BY_PAT = {
    (teacher, student.startswith(CNNS)): (teacher, student, data)
    for teacher, student, data in PAIRS
}
REST = [pair for pair in PAIRS if pair not in BY_PAT.values()]
CASES = [*((pair, "pat") for pair in BY_PAT.values()), *zip(REST, cycle(OTHERS))]


def images(side):
    """Two random images with labels, as a data loader gives them."""
    torch.manual_seed(1)
    samples = [DataSample(metainfo=dict(sample_idx=i)).set_gt_label(3 + i) for i in range(2)]
    pixels = torch.randint(256, (2, 3, side, side), dtype=torch.uint8)
    return dict(inputs=pixels, data_samples=samples)


def check_two_steps(pair, method, side=None):
    """Trains a pair with the optimizer and the preprocessor of its config."""
    cfg = load(pair_name(*pair))
    cfg = untrained(cfg) if side is None else shrink(cfg, side)
    side = cfg.model.input_size[0]
    mixed = "batch_augments" in student_model(cfg).data_preprocessor
    apply_method(cfg, method)
    if method == "crd":
        cfg.model.method.num_data = 50000  # of ImageNet it would take 1.3 GB
    model = build(cfg)
    student = getattr(model, "student", model)
    teacher = getattr(model, "teacher", torch.nn.Module())
    wrapper = build_optim_wrapper(model, copy.deepcopy(cfg.optim_wrapper))
    frozen = {name: value.clone() for name, value in teacher.state_dict().items()}
    start = {name: value.detach().clone() for name, value in student.named_parameters()}

    def check_gradients(optimizer, args, kwargs):
        for name, param in model.named_parameters():
            assert param.grad is not None and torch.isfinite(param.grad).all(), name

    wrapper.optimizer.register_step_pre_hook(check_gradients)
    for _ in range(2):
        data = images(side)
        losses = model.train_step(data, wrapper)
        assert all(torch.isfinite(value).all() for value in losses.values()), losses
        assert ("gt_score" in data["data_samples"][0]) == mixed
    assert (method == "none") == (set(losses) == {"loss"})
    moved = [name for name, value in student.named_parameters() if (value != start[name]).any()]
    assert len(moved) > 0.9 * len(start)
    assert all(param.grad is None for param in teacher.parameters())
    for name, value in teacher.state_dict().items():
        assert torch.equal(value, frozen[name]), name


@pytest.mark.parametrize(
    ("pair", "method"), [pytest.param(*row, id="-".join((*row[0], row[1]))) for row in CASES]
)
def test_pair_with_method(pair, method):
    check_two_steps(pair, method, side=64)


@pytest.mark.full
@pytest.mark.parametrize("prompt", ["channel", "spatial"])
@pytest.mark.parametrize("teacher", sorted({teacher for teacher, _, _ in PUBLISHED}))
def test_prompted_teacher_at_beta_zero(teacher, prompt):
    cfg = untrained(load(pair_name(*next(pair for pair in PUBLISHED if pair[0] == teacher))))
    cfg.model.method.prompt = prompt
    model = classifiers.build(cfg.model)
    check_prompts(model, model.data_preprocessor(images(224), True))


@pytest.mark.full
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("pair", PUBLISHED, ids="-".join)
def test_every_pair_with_every_method(pair, method):
    check_two_steps(pair, method)
