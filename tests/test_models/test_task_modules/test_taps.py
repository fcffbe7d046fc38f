import copy

import mmpretrain.models  # noqa: F401  (registers its backbones)
import pytest
import torch
from mmdet.models.backbones import MobileNetV2
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from pat_mmdet.models.backbones import HeadlessMobileNetV2
from pat_mmdet.models.task_modules import Prompter, Recorder, resolve
from pat_mmdet.models.task_modules.stages import (
    Stage,
    backbone_stages,
    map_to_tokens,
    tokens_to_map,
)

OUT = dict(out_indices=(0, 1, 2, 3))
MOBILE = dict(widen_factor=0.25, out_indices=(1, 2, 4, 6))
# Config, strides of the maps that enter the stages, and their channels. Swin is prompted behind
# the downsampling that leads to a stage, the others before it.
BACKBONES = {
    "swin": (
        dict(
            type="SwinTransformer", embed_dims=8, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 2),
            window_size=5, **OUT,
        ),
        (4, 8, 16, 32),
        (8, 16, 32, 64),
    ),
    "mmpretrain swin": (
        dict(
            type="mmpretrain.SwinTransformer", window_size=5, out_after_downsample=False,
            pad_small_map=True, **OUT,
            arch=dict(embed_dims=8, depths=[2, 2, 2, 2], num_heads=[1, 2, 2, 2]),
        ),
        (4, 8, 16, 32),
        (8, 16, 32, 64),
    ),
    "resnet": (
        dict(type="ResNet", depth=18, base_channels=8, stem_channels=8, **OUT),
        (4, 4, 8, 16),
        (8, 8, 16, 32),
    ),
    "convnext": (
        dict(
            type="mmpretrain.ConvNeXt", arch=dict(depths=[1, 1, 1, 1], channels=[8, 16, 24, 32]),
            out_indices=[0, 1, 2, 3], gap_before_final_norm=False, layer_scale_init_value=1.0,
        ),
        (4, 4, 8, 16),
        (8, 8, 16, 24),
    ),
    "mobilenet": (dict(type="MobileNetV2", **MOBILE), (2, 4, 8, 16), (8, 8, 8, 24)),
    "headless mobilenet": (
        dict(type="HeadlessMobileNetV2", **MOBILE), (2, 4, 8, 16), (8, 8, 8, 24),
    ),
}  # fmt: skip


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


@pytest.fixture(scope="module", params=BACKBONES)
def tapped(request):
    """A network with a prompted backbone, its prompter, and what is expected of it."""
    config, strides, channels = BACKBONES[request.param]
    init_default_scope("mmdet")
    torch.manual_seed(0)
    network = nn.ModuleDict(dict(backbone=MODELS.build(config))).eval()
    for param in network.parameters():
        if param.dim() == 1:  # norms and biases that make a difference
            param.data += 0.1 * torch.rand_like(param)
    stages = backbone_stages(network.backbone)
    return network, Prompter(network, stages), strides, channels


def run(network, images):
    with torch.no_grad():
        return network.backbone(images)


def equal(first, second):
    return len(first) == len(second) and all(map(torch.equal, first, second))


def entries(tapped, images):
    """What enters the stages, as a prompt sees it."""
    network, prompter, *_ = tapped
    seen = {}

    def note(index, x):
        assert index not in seen, "a stage begins once a pass"
        seen[index] = x.clone()
        return x

    with prompter.prompting(note):
        run(network, images)
    return [seen[index] for index in sorted(seen)]


@pytest.mark.parametrize("size", [(72, 104), (64, 64), (96, 160)])
def test_identity_prompt_changes_nothing(tapped, size):
    network, prompter, *_ = tapped
    images = torch.randn(2, 3, *size)
    plain = run(network, images)
    for prompt in (lambda i, x: x, lambda i, x: x + 0.0 * torch.randn_like(x), lambda i, x: +x):
        with prompter.prompting(prompt):
            prompted = run(network, images)
        assert len(plain) == 4 and equal(plain, prompted)


def test_prompts_get_the_map_of_each_stage(tapped):
    *_, strides, channels = tapped
    maps = entries(tapped, torch.randn(2, 3, 96, 160))
    assert [tuple(x.shape) for x in maps] == [
        (2, width, 96 // stride, 160 // stride) for stride, width in zip(strides, channels)
    ]


def test_each_prompt_reaches_its_own_stage_and_the_later_ones(tapped):
    network, prompter, *_ = tapped
    images = torch.randn(2, 3, 64, 96)
    plain = run(network, images)
    for stage in range(4):
        with prompter.prompting(
            lambda i, x, s=stage: x * (1 + torch.rand_like(x)) if i == s else x
        ):
            prompted = run(network, images)
        # Each output lies behind the stage of its number.
        same = [torch.equal(x, y) for x, y in zip(plain, prompted)]
        assert same == [True] * stage + [False] * (4 - stage)


def test_a_place_in_the_image_is_the_same_place_in_the_map(tapped):
    images = torch.randn(1, 3, 96, 160)
    # The upper left part, with a margin for the reach of the stem.
    other = images.clone()
    other[..., : 48 - 16, : 80 - 16] += 1
    before, after = (entries(tapped, x)[0] for x in (images, other))
    moved = (before - after).abs().amax(dim=(0, 1)) > 1e-6
    height, width = moved.shape
    assert not moved[height // 2 :].any() and not moved[:, width // 2 :].any()
    # Nearly everywhere: a few places may have no channel that its activation lets through.
    assert moved[: height // 4, : width // 4].float().mean() > 0.8


def test_a_place_in_the_prompt_is_the_same_token(tapped):
    network, prompter, *_ = tapped
    stage = backbone_stages(network.backbone)[1]
    taken = []
    handle = resolve(network, stage.input_module).register_forward_pre_hook(
        lambda module, args: taken.append(args[0].clone())
    )

    def prompt(index, x):
        if index == 1:
            x = x.clone()
            x[:, :, 2, 3] += 5
        return x

    try:
        images = torch.randn(2, 3, 64, 96)
        run(network, images)
        with prompter.prompting(prompt):
            run(network, images)
    finally:
        handle.remove()
    difference = (taken[1] - taken[0]).abs()
    if stage.layout == "NLC":
        width = 96 // 8
        places = difference.amax(dim=(0, 2)).nonzero().flatten().tolist()
        assert places == [2 * width + 3]
    else:
        places = difference.amax(dim=(0, 1)).nonzero().tolist()
        assert places == [[2, 3]]


def test_gradient_reaches_the_prompt(tapped):
    network, prompter, _, channels = tapped
    prompts = [torch.zeros(1, width, 1, 1, requires_grad=True) for width in channels]
    with prompter.prompting(lambda i, x: x + prompts[i] * x):
        loss = sum(x.square().sum() for x in network.backbone(torch.randn(2, 3, 64, 96)))
    loss.backward()
    network.zero_grad()
    assert all(prompt.grad.abs().sum() > 0 for prompt in prompts)


def test_prompt_ends_with_the_context(tapped):
    network, prompter, *_ = tapped
    images = torch.randn(1, 3, 64, 64)
    plain = run(network, images)

    def double(index, x):
        return x * torch.linspace(1, 2, x.shape[1]).view(-1, 1, 1)

    with prompter.prompting(double):
        assert not equal(plain, run(network, images))
    assert equal(plain, run(network, images))

    def fail(index, x):
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"), prompter.prompting(fail):
        run(network, images)
    assert equal(plain, run(network, images))


@pytest.mark.parametrize("size", [(3, 5), (1, 7), (6, 2)])
def test_tokens_and_maps_round_trip(size):
    height, width = size
    features = torch.randn(2, 4, height, width)
    tokens = map_to_tokens(features)
    assert tokens.shape == (2, height * width, 4)
    assert torch.equal(tokens_to_map(tokens, size), features)
    for row in range(height):
        for column in range(width):
            assert torch.equal(tokens[:, row * width + column], features[:, :, row, column])
    other = torch.randn(2, height * width, 4)
    assert torch.equal(map_to_tokens(tokens_to_map(other, torch.Size(size))), other)


def test_tokens_of_another_size_are_refused():
    with pytest.raises(RuntimeError):
        tokens_to_map(torch.randn(1, 12, 3), (3, 5))


class Toy(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.stages = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Tanh()
        self.scale = Scale()

    def forward(self, x):
        for stage in self.stages:
            x = stage(x)
        return self.scale(x, self.head(x), factor=2)


class Scale(nn.Module):
    def forward(self, first, second, factor):
        return first + factor * second


@pytest.mark.parametrize(
    ("path", "close"),
    [
        ("stage.1", "stages.1"),
        ("stages.3", "stages.2"),
        ("backbone.stages.0", "stages.0"),
        ("heads", "head"),
        ("zzzzzzzz", "stem"),
    ],
)
def test_wrong_path_names_those_that_come_close(path, close):
    with pytest.raises(ValueError, match=f"^Toy has no module '{path}'. Paths that come") as error:
        resolve(Toy(), path)
    assert close in str(error.value).split("come close: ")[1].split(", ")


def test_right_path_is_resolved():
    toy = Toy()
    assert resolve(toy, "stages.1") is toy.stages[1]
    assert resolve(toy, "") is toy


def test_wrong_paths_fail_when_hooks_are_registered():
    for make in (
        lambda toy: Recorder(toy, inputs={"x": ("stages.7", 0)}),
        lambda toy: Recorder(toy, outputs={"x": "stages.7"}),
        lambda toy: Prompter(toy, [Stage("stages.0"), Stage("stages.7")]),
    ):
        with pytest.raises(ValueError, match=r"no module 'stages.7'.*stages.2"):
            make(Toy())


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


def test_recorder_does_nothing_outside_of_its_context():
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


def test_stages_of_a_derived_class_and_prefix():
    class Mine(HeadlessMobileNetV2):
        pass

    assert backbone_stages(Mine(**MOBILE), "net.body")[1] == Stage(
        "net.body.layer3", "NCHW", output_module="net.body.layer3"
    )
    assert [stage.layout for stage in backbone_stages(nn_swin())] == ["NLC"] * 4
    with pytest.raises(
        ValueError, match=r"Linear are not known \(known: ConvNeXt, EfficientNet, MlpMixer"
    ):
        backbone_stages(nn.Linear(1, 1))
    with pytest.raises(ValueError, match="unknown layout 'NWHC'"):
        Stage("a", "NWHC")


def nn_swin():
    init_default_scope("mmdet")
    return MODELS.build(BACKBONES["swin"][0])


@pytest.mark.parametrize("indices", [(1, 2, 4, 6), (2,), (0, 3), (6, 7)])
def test_headless_mobilenet_gives_what_mobilenet_gives(indices):
    torch.manual_seed(0)
    parent = MobileNetV2(widen_factor=0.25, out_indices=indices)
    headless = HeadlessMobileNetV2(widen_factor=0.25, out_indices=indices)
    state = parent.state_dict()
    state["conv1.bn.running_mean"] += 0.3
    headless.load_state_dict(state, strict=True)
    other = MobileNetV2(widen_factor=0.25, out_indices=indices)
    other.load_state_dict(headless.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 96)
    for mode in (False, True):
        for net in (parent, headless, other):
            net.train(mode)
        own, theirs, back = (copy.deepcopy(net)(images) for net in (headless, parent, other))
        assert isinstance(own, tuple) and equal(own, theirs) and equal(own, back)


@pytest.mark.parametrize("options", [{}, dict(frozen_stages=1), dict(norm_eval=True)])
@pytest.mark.parametrize("indices", [(1, 2, 4, 6), (1, 2), (0, 7)])
def test_headless_mobilenet_trains_what_it_runs(indices, options):
    net = HeadlessMobileNetV2(widen_factor=0.25, out_indices=indices, **options)
    net.train()
    sum(x.square().mean() for x in net(torch.randn(2, 3, 64, 96))).backward()
    for name, param in net.named_parameters():
        assert (param.grad is not None) == param.requires_grad, name
    trained = {name.split(".")[0] for name, p in net.named_parameters() if p.requires_grad}
    names = ["conv1", *net.layers][: max(indices) + 2]
    assert trained == set(names[2 if "frozen_stages" in options else 0 :])


def test_headless_mobilenet_is_frozen_when_it_is_built():
    # DistributedDataParallel wraps it before train() is called.
    net = HeadlessMobileNetV2(widen_factor=0.25, out_indices=(1, 2, 4, 6), frozen_stages=1)
    before = {name for name, param in net.named_parameters() if param.requires_grad}
    net.train()
    assert before == {name for name, param in net.named_parameters() if param.requires_grad}
