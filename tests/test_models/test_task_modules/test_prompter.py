import mmpretrain.models  # noqa: F401  (registers its backbones)
import pytest
import torch
from helpers.modules import Toy
from mmengine.registry import MODELS, init_default_scope
from torch import nn

from pat_mmdet.models.task_modules import Prompter, Stage, backbone_stages, resolve

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
    """Return the inputs of the stages as a prompt gets them."""
    network, prompter, *_ = tapped
    seen = {}

    def note(index, x):
        assert index not in seen, "a stage begins once a pass"
        seen[index] = x.clone()
        return x

    with prompter.prompting(note):
        run(network, images)
    return [seen[index] for index in sorted(seen)]


def test_identity_prompt_changes_nothing(tapped):
    network, prompter, *_ = tapped
    images = torch.randn(2, 3, 72, 104)  # maps of odd sizes
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


def test_prompt_changes_later_stages(tapped):
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


def test_map_position(tapped):
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


def test_prompt_preserves_token_order(tapped):
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


def test_wrong_path():
    with pytest.raises(ValueError, match=r"no module 'stages.7'.*stages.2"):
        Prompter(Toy(), [Stage("stages.0"), Stage("stages.7")])
