import pytest
import torch
from helpers.modules import Toy

from pat_mmdet.models.task_modules import Recorder


@pytest.mark.parametrize(
    "paths", [dict(inputs={"x": ("stages.7", 0)}), dict(outputs={"x": "stages.7"})]
)
def test_wrong_path(paths):
    with pytest.raises(ValueError, match=r"no module 'stages.7'.*stages.2"):
        Recorder(Toy(), **paths)


def test_recorder_keeps_inputs_and_outputs():
    toy = Toy()
    recorder = Recorder(
        toy,
        inputs={"first": ("scale", 0), "second": ("scale", 1)},
        outputs={"middle": "stages.1", "all": ""},
    )
    x = torch.randn(2, 4)
    with recorder.recording() as activations:
        assert activations == {}
        output = toy(x)
    assert set(activations) == {"first", "second", "middle", "all"}
    activations = {name: calls[0] for name, calls in activations.items()}
    assert torch.equal(activations["middle"], toy.stages[1](toy.stages[0](x)))
    assert activations["all"] is output
    assert activations["first"].grad_fn is not None
    assert torch.equal(activations["second"], activations["first"].tanh())
    assert torch.equal(output, activations["first"] + 2 * activations["second"])


def test_recorder_keeps_every_call():
    toy = Toy()
    recorder = Recorder(toy, inputs={"in": ("stages.0", 0)}, outputs={"out": "stages.0"})
    first, second = torch.randn(2, 1, 4)
    with recorder.recording() as activations:
        expected = toy.stages[0](first)
        toy.stages[0](second)
    assert activations["in"][0] is first and activations["out"][0] is expected
    assert activations["in"][1] is second and len(activations["in"]) == len(activations["out"]) == 2
    with recorder.recording() as others:
        toy.stages[0](second)
    assert others["in"] == [second] and len(activations["in"]) == 2


def test_recorder_outside_context():
    toy = Toy()
    recorder = Recorder(toy, inputs={"in": ("stages.0", 0)}, outputs={"out": "stages.0"})
    toy(torch.randn(1, 4))
    with recorder.recording() as activations:
        pass
    toy(torch.randn(1, 4))
    assert activations == {} and recorder._activations is None
    with pytest.raises(RuntimeError, match="inside"), recorder.recording() as activations:
        toy(torch.randn(1, 4))
        raise RuntimeError("inside")
    assert recorder._activations is None and set(activations) == {"in", "out"}
    toy.stages[0](torch.zeros(1, 4))
    assert activations["in"][0].any()
