"""The stages of timm's and mmpretrain's networks, and prompts in them."""

import pytest
import timm
import torch
from helpers.classifiers import (
    MMPRETRAIN,
    SIZE,
    TIMM,
    batch,
    build,
    check_prompts,
    config,
    distiller,
)
from mmengine.registry import MODELS, init_default_scope

from pat_mmdet.models.task_modules import Prompter, resolve
from pat_mmdet.models.task_modules.classifier_reader import ClassifierReader, _classifier
from pat_mmdet.models.task_modules.stages import backbone_stages

MAPS = (4, 8, 16, 32)
BEFORE = (4, 4, 8, 16)
MOBILE = (2, 4, 8, 16)
TOKENS = (16, 16, 16, 16)
# Strides of the stages' features and of what enters the stages, and for networks of tokens how
# many stand before those of the grid.
EXPECTED = {
    "swin_tiny_patch4_window7_224": (MAPS, MAPS, None),
    "swin_nano_patch4_window7_224": (MAPS, MAPS, None),
    "swin_pico_patch4_window7_224": (MAPS, MAPS, None),
    "vit_small_patch16_224": (TOKENS, TOKENS, 1),
    "deit_tiny_patch16_224": (TOKENS, TOKENS, 1),
    "deit_tiny_distilled_patch16_224": (TOKENS, TOKENS, 2),
    "small_mixer": (TOKENS, TOKENS, 0),
    "small_resmlp": (TOKENS, TOKENS, 0),
    "convnext_tiny": (MAPS, BEFORE, None),
    "tiny_vit_5m_224": (MAPS, BEFORE, None),
    "resnet50": (MAPS, BEFORE, None),
    "resnet18": (MAPS, BEFORE, None),
    "mobilenetv2_035": (MAPS, MOBILE, None),
    "mm swin": (MAPS, MAPS, None),
    "mm vit": (TOKENS, TOKENS, 1),
    "mm vit without class token": (TOKENS, TOKENS, 0),
    "mm distilled deit": (TOKENS, TOKENS, 2),
    "mm mixer": (TOKENS, TOKENS, 0),
    "mm convnext": (MAPS, BEFORE, None),
    "mm resnet": (MAPS, BEFORE, None),
    "mm mobilenet": (MAPS, MOBILE, None),
}
# Shapes of the paper's own networks at 224 pixels.
GRID = (14, 14)
PAPER = {
    "swin_tiny_patch4_window7_224": [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)],
    "swin_nano_patch4_window7_224": [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)],
    "swin_pico_patch4_window7_224": [(48, 56, 56), (96, 28, 28), (192, 14, 14), (384, 7, 7)],
    "vit_small_patch16_224": [(384, *GRID)] * 4,
    "deit_tiny_patch16_224": [(192, *GRID)] * 4,
    "deit_tiny_distilled_patch16_224": [(192, *GRID)] * 4,
    "mixer_b16_224": [(768, *GRID)] * 4,
    "resmlp_12_224": [(384, *GRID)] * 4,
    "convnext_tiny": [(96, 56, 56), (192, 28, 28), (384, 14, 14), (768, 7, 7)],
    "resnet50": [(256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)],
    "resnet18": [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)],
    "mobilenetv2_100": [(24, 56, 56), (32, 28, 28), (96, 14, 14), (1280, 7, 7)],
}
# What stands for them above.
SMALL = dict(
    mixer_b16_224="small_mixer", resmlp_12_224="small_resmlp", mobilenetv2_100="mobilenetv2_035"
)
# Blocks after which a network of 12 blocks has its stages, and where the prompts enter.
CUT = [("0", "1"), ("2", "3"), ("4", "9"), ("10", "11")]


class Tapped:
    """A network with taps at its stages: a small one, or one of the paper's at its own size."""

    def __init__(self, name, small=True):
        cfg = config(name) if small else dict(type="TimmClassifier", model_name=name)
        self.network = build(cfg).eval()
        self.strides, self.entry_strides, self.extra = EXPECTED[SMALL.get(name, name)]
        self.size = SIZE if small else 224
        generator = torch.Generator().manual_seed(1)
        self.images = torch.randn(2, 3, self.size, self.size, generator=generator)
        self.plain = self.logits()
        path = "model" if hasattr(self.network, "model") else "backbone"
        self.stages = backbone_stages(getattr(self.network, path), path)
        self.reader = ClassifierReader(self.network, self.stages, embedding=True)
        self.prompter = Prompter(self.network, self.stages)

    @torch.no_grad()
    def logits(self, images=None):
        return self.network(self.images if images is None else images, mode="tensor")

    def view(self, images=None):
        with self.reader.recording() as activations:
            activations["logits"] = [self.logits(images)]
        return self.reader.read(activations)

    def entries(self, images=None):
        """What enters the stages, as maps."""
        seen = {}

        def note(index, x):
            assert index not in seen, "a stage begins once a pass"
            seen[index] = x.clone()
            return x

        with self.prompter.prompting(note):
            self.logits(images)
        return [seen[index] for index in sorted(seen)]

    def raw_entry(self, stage, prompt=None):
        """What the first module of a stage gets, in the network's own layout."""
        taken = []
        handle = resolve(self.network, stage.input_module).register_forward_pre_hook(
            lambda module, args: taken.append(args)
        )
        try:
            with self.prompter.prompting(prompt or (lambda index, x: x)):
                self.logits()
        finally:
            handle.remove()
        return taken[0]


@pytest.fixture(
    scope="module",
    params=[
        *((name, True) for name in EXPECTED),
        *(pytest.param((name, False), marks=pytest.mark.full) for name in PAPER),
    ],
    ids=lambda param: param[0] if param[1] else f"{param[0]} at 224",
)
def tapped(request):
    return Tapped(*request.param)


def test_every_small_network_is_tested():
    assert set(EXPECTED) == {*TIMM, *MMPRETRAIN}


def test_hooks_keep_logits(tapped):
    assert torch.equal(tapped.view().logits, tapped.plain)
    for prompt in (lambda i, x: x, lambda i, x: x + 0.0 * torch.randn_like(x)):
        with tapped.prompter.prompting(prompt):
            assert torch.equal(tapped.view().logits, tapped.plain)
    # Convolutions of maps in another order in memory may round in another way.
    with tapped.prompter.prompting(lambda i, x: x.contiguous().clone()):
        torch.testing.assert_close(tapped.view().logits, tapped.plain)
    assert torch.equal(tapped.logits(), tapped.plain)


def test_sizes_of_features_and_entries(tapped):
    view = tapped.view()
    for maps, strides in (
        (view.features, tapped.strides),
        (tapped.entries(), tapped.entry_strides),
    ):
        assert [x.shape[2:] for x in maps] == [(tapped.size // stride,) * 2 for stride in strides]
    classifier = resolve(tapped.network, _classifier(tapped.network))
    assert view.embedding.shape == (2, classifier.in_features)


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_035", "mm resnet", "mm mobilenet"])
def test_last_map_is_pooled(name):
    view = Tapped(name).view()
    torch.testing.assert_close(view.features[3].mean((2, 3)), view.embedding)


def test_layout_round_trip(tapped):
    for stage, entry in zip(tapped.stages, tapped.entries()):
        args = tapped.raw_entry(stage)
        features, back = stage.to_map(args[0], args)
        assert torch.equal(features, entry)
        assert torch.equal(back(features), args[0])
        assert torch.equal(back(features.contiguous()), args[0])


def test_prompt_changes_later_stages(tapped):
    plain = tapped.view()
    for stage in range(4):
        with tapped.prompter.prompting(
            lambda i, x, s=stage: x * (1 + torch.rand_like(x)) if i == s else x
        ):
            view = tapped.view()
        same = [torch.equal(x, y) for x, y in zip(plain.features, view.features)]
        assert same == [True] * stage + [False] * (4 - stage)
        assert not torch.equal(plain.logits, view.logits)


def test_patch_position(tapped):
    images = tapped.images.clone()
    images[:, :, -16:, :16] += 1
    before, after = (tapped.entries(x)[0] for x in (tapped.images, images))
    moved = (before != after).any(1).any(0)
    if tapped.extra is not None:
        assert moved.nonzero().tolist() == [[len(moved) - 1, 0]]
    else:
        half = len(moved) // 2
        assert moved[-1, 0] and not moved[:half, half:].any()


def test_prompt_position(tapped):
    row, column = 1, 3

    def prompt(index, x):
        if index == 1:
            x = x.clone()
            x[:, :, row, column] += 5
        return x

    stage = tapped.stages[1]
    width = tapped.entries()[1].shape[3]
    plain, prompted = tapped.raw_entry(stage)[0], tapped.raw_entry(stage, prompt)[0]
    changed = plain != prompted
    axes = {"NLC": (0, 2), "NHWC": (0, 3), "NCHW": (0, 1)}[stage.layout]
    for axis in sorted(axes, reverse=True):
        changed = changed.any(axis)
    place = [stage.extra_tokens + row * width + column]
    assert changed.nonzero().tolist() == [place if stage.layout == "NLC" else [row, column]]


def test_extra_tokens(tapped):
    if tapped.extra is None:
        assert all(stage.extra_tokens == 0 for stage in tapped.stages)
        return
    extra = tapped.extra
    assert [stage.extra_tokens for stage in tapped.stages] == [extra] * 4
    tokens = tapped.raw_entry(tapped.stages[0])[0]
    patches = (tapped.size // 16) ** 2
    assert tokens.shape[1] == extra + patches
    # Only what does not come from the image is the same in two images.
    same = (tokens[0] == tokens[1]).all(1)
    assert same.tolist() == [True] * extra + [False] * patches
    network = getattr(tapped.network, "model", None)
    if extra and hasattr(network, "cls_token"):
        expected = network.cls_token[0, 0] + network.pos_embed[0, 0]
        assert torch.equal(tokens[0, 0], expected)


def test_class_token_is_left_out(tapped):
    if not tapped.extra:
        return
    extra = tapped.extra
    for stage in tapped.stages:
        plain = tapped.raw_entry(stage)[0]
        number = tapped.stages.index(stage)
        other = tapped.raw_entry(stage, lambda i, x, n=number: x + 1 if i == n else x)[0]
        assert torch.equal(other[:, :extra], plain[:, :extra])
        torch.testing.assert_close(other[:, extra:], plain[:, extra:] + 1)
    ends = []
    handle = resolve(tapped.network, tapped.stages[0].output_module).register_forward_hook(
        lambda module, args, output: ends.append(output)
    )
    feature = tapped.view().features[0]
    handle.remove()
    assert torch.equal(feature.flatten(2).transpose(1, 2), ends[0][:, extra:])


def first_and_last_block(stage):
    paths = (stage.input_module, stage.output_module)
    return tuple(path.split(".")[-1] for path in paths)


def test_stages_of_twelve_blocks(tapped):
    if tapped.extra is None:
        return
    found = [first_and_last_block(stage) for stage in tapped.stages]
    assert found == CUT


@pytest.mark.parametrize("depth", [1, 3, 6, 24])
def test_stages_of_other_depths(depth):
    network = build(
        config("mm vit", backbone=dict(
            type="VisionTransformer", img_size=SIZE, patch_size=16,
            arch=dict(embed_dims=4, num_layers=depth, num_heads=1, feedforward_channels=4),
        ))
    )  # fmt: skip
    stages = backbone_stages(network.backbone)
    blocks = [
        block
        for stage in stages
        for first, last in [map(int, first_and_last_block(stage))]
        for block in range(first, last + 1)
    ]
    assert blocks == list(range(depth)) and len(stages) == min(depth, 4)


@pytest.mark.parametrize("name", PAPER)
def test_shapes_of_the_papers_networks(name):
    init_default_scope("mmpretrain")
    with torch.device("meta"):
        network = MODELS.build(dict(type="TimmClassifier", model_name=name)).eval()
        stages = backbone_stages(network.model, "model")
        reader = ClassifierReader(network, stages, embedding=True)
        entries = []
        note = Prompter(network, stages).prompting(lambda i, x: entries.append(x.shape) or x)
        with torch.no_grad(), note, reader.recording() as activations:
            activations["logits"] = [network(torch.empty(2, 3, 224, 224))]
    view = reader.read(activations)
    assert [tuple(x.shape[1:]) for x in view.features] == PAPER[name]
    assert view.logits.shape == (2, 1000)
    assert view.embedding.shape == (2, PAPER[name][-1][0])
    assert len(entries) == 4


def test_sizes_of_the_papers_small_swins():
    for name, width in (("swin_nano_patch4_window7_224", 64), ("swin_pico_patch4_window7_224", 48)):
        with torch.device("meta"):
            model = timm.create_model(name)
        assert model.embed_dim == width
        assert [len(layer.blocks) for layer in model.layers] == [2, 2, 2, 2]
        attention = [layer.blocks[0].attn for layer in model.layers]
        assert [module.num_heads for module in attention] == [2, 4, 8, 16]
        assert {module.window_size for module in attention} == {(7, 7)}
        assert model.head.fc.in_features == 8 * width


# Prompts of PAT.

TEACHERS = (
    "swin_tiny_patch4_window7_224",
    "vit_small_patch16_224",
    "deit_tiny_patch16_224",
    "small_mixer",
    "convnext_tiny",
    "resnet50",
)


@pytest.mark.parametrize(
    ("teacher", "prompt", "feedback"),
    [
        *((teacher, "channel", "previous") for teacher in TEACHERS),
        ("resnet50", "spatial", "current"),
        ("vit_small_patch16_224", "spatial", "none"),
    ],
)
def test_prompted_teacher_at_beta_zero(teacher, prompt, feedback):
    options = dict(prompt=prompt, feedback=feedback)
    student = "resnet18" if EXPECTED[teacher][2] is not None else "deit_tiny_patch16_224"
    model = build(distiller(student, teacher, "PAT", **options))
    check_prompts(model, batch(model, count=2))
