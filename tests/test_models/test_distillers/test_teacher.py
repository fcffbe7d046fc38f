"""The frozen teacher as one object."""

import copy
import math

import pytest
import torch
from helpers import classifiers, detectors
from torch import nn

TASKS = ("detection", "classification")


def pair(task, **options):
    """A pair with PAT, and a batch of two images."""
    if task == "detection":
        options = {f"model__{key}": value for key, value in options.items()}
        model = detectors.build(detectors.pair_config(**options))
        return model, detectors.batch(model)
    model = classifiers.build(classifiers.distiller(method="PAT", **options))
    return model, classifiers.batch(model, count=2)


def plain_pass(model, data):
    _, activations = model.forward_student(**data)
    return model.frozen_teacher.forward(**rename(data), student_activations=activations)


def rename(data):
    return dict(images=data["inputs"], data_samples=data["data_samples"])


@pytest.mark.parametrize("task", TASKS)
def test_teacher_is_outside_module_tree(task):
    model, _ = pair(task)
    teacher = model.frozen_teacher
    assert not isinstance(teacher, nn.Module) and model.teacher is teacher.network
    own = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    assert not own & {id(tensor) for tensor in teacher.network.parameters()}
    assert not any("teacher" in name for name, _ in model.named_modules())
    assert copy.deepcopy(model).frozen_teacher is teacher
    assert not any(module.training for module in teacher.network.modules())
    assert not any(param.requires_grad for param in teacher.network.parameters())


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_non_finite_teacher(value, tmp_path):
    state = pair("classification")[0].teacher.state_dict()
    name = list(state)[-1]
    state[name].view(-1)[0] = value
    path = str(tmp_path / "teacher.pth")
    torch.save(dict(state_dict=state), path)
    message = rf"teacher.pth' gives \w+ 1 tensors .*\({name}\)"
    with pytest.raises(ValueError, match=message):
        pair("classification", teacher_checkpoint=path)


@pytest.mark.parametrize("task", TASKS)
def test_num_images_of_the_prompted_pass(task):
    model, data = pair(task)
    plain = plain_pass(model, data)
    with torch.no_grad():
        whole = model.frozen_teacher.forward_prompted(lambda stage, x: x)
        one = model.frozen_teacher.forward_prompted(lambda stage, x: x, num_images=1)
    assert all(map(torch.equal, whole.features, plain.features))
    assert torch.equal(whole.logits, plain.logits)
    assert [len(x) for x in one.features] == [1] * len(plain.features)
    assert 0 < len(one.logits) < len(plain.logits)
    torch.testing.assert_close(one.logits, plain.logits[: len(one.logits)])


@pytest.mark.parametrize("task", TASKS)
def test_prompted_pass_needs_a_plain_one(task):
    model, data = pair(task)
    teacher = model.frozen_teacher
    with pytest.raises(RuntimeError, match="the plain pass of the step before it"):
        teacher.forward_prompted(lambda stage, x: x)
    plain_pass(model, data)
    teacher.forward_prompted(lambda stage, x: x)
    teacher.release()
    with pytest.raises(RuntimeError, match="the plain pass of the step before it"):
        teacher.forward_prompted(lambda stage, x: x)


@pytest.mark.parametrize("task", TASKS)
def test_gradient_reaches_prompts_alone(task):
    model, data = pair(task)
    plain = plain_pass(model, data)
    assert not any(x.requires_grad for x in (*plain.features, plain.logits))
    shift = torch.zeros(1, requires_grad=True)
    prompted = model.frozen_teacher.forward_prompted(lambda stage, x: x + shift)
    (prompted.logits.square().sum() + prompted.features[-1].square().sum()).backward()
    assert shift.grad.abs() > 0
    assert all(param.grad is None for param in model.teacher.parameters())


@pytest.mark.parametrize("task", TASKS)
def test_teacher_moves_with_the_distiller(task):
    model, _ = pair(task)
    model.double()
    assert {param.dtype for param in model.teacher.parameters()} == {torch.float64}
    assert model.frozen_teacher.to(torch.float32) is model.frozen_teacher
    assert {param.dtype for param in model.teacher.parameters()} == {torch.float32}
    assert {param.dtype for param in model.student.parameters()} == {torch.float64}


def test_old_names_of_stage_fields():
    stages = [
        dict(begin=f"backbone.stages.{i}", end=f"backbone.stages.{i}.blocks.1", layout="NLC")
        for i in range(4)
    ]
    old, _ = pair("detection", teacher_stages=stages)
    new, _ = pair("detection")
    assert old.frozen_teacher.stages == new.frozen_teacher.stages


@pytest.mark.parametrize(
    "stage",
    [
        dict(begin="a", input_module="b"),
        dict(input_module="a", output="b"),
        dict(output_module="a"),
        {},
    ],
)
def test_misdescribed_stage(stage):
    with pytest.raises(ValueError, match="it needs input_module and may have layout"):
        pair("detection", teacher_stages=[stage])
