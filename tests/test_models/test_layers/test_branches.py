import pytest
import torch
from torch import nn

from pat_mmdet.models.layers import MapBranch, TokenBranch
from pat_mmdet.models.layers.branches import PatchMerging
from pat_mmdet.models.losses import ofa_loss
from pat_mmdet.models.methods import OFA
from pat_mmdet.structures import FeatureSpec, NetworkOutputs

CLASSES = 5


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def spec(shapes, tokens=False):
    return FeatureSpec(tuple(shapes), num_classes=CLASSES, tokens=tokens)


def ofa(shapes, tokens=False, branch="stages", **options):
    # Of the teacher's features only the number counts.
    method = OFA(branch, **options)
    method.build_layers(spec(shapes, tokens), spec([(2, 1, 1)] * 4))
    return method


def pyramid(sides, channels=(4, 8, 12, 16)):
    return [(width, side, side) for width, side in zip(channels, sides)]


def sizes_at_the_end(branch, x):
    """The size of the map or the number of tokens before the mean, and the logits' shape."""
    inner = branch.layers if isinstance(branch, MapBranch) else branch.merging
    seen = []
    handle = inner.register_forward_hook(lambda module, args, out: seen.append(out.shape[2:]))
    logits = branch(x)
    handle.remove()
    return tuple(seen[0]), tuple(logits.shape)


# At 224 and 32 pixels, and where a side is odd.
@pytest.mark.parametrize(
    ("sides", "end"),
    [((56, 28, 14, 7), 7), ((8, 4, 2, 1), 1), ((10, 5, 3, 2), 2), ((7, 4, 2, 1), 1)],
)
def test_map_branch_sizes(sides, end):
    shapes = pyramid(sides)
    method = ofa(shapes)
    assert all(isinstance(branch, MapBranch) for branch in method.branches)
    for branch, shape in zip(method.branches, shapes):
        assert sizes_at_the_end(branch, torch.randn(2, *shape)) == ((end, end), (2, CLASSES))
        assert branch.classifier.in_features == 16


def test_map_branches_of_resnet18_at_224():
    shapes = [(64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7)]
    with torch.device("meta"):
        method = ofa(shapes)
        for branch, shape in zip(method.branches, shapes):
            assert sizes_at_the_end(branch, torch.empty(2, *shape)) == ((7, 7), (2, CLASSES))
    convolutions = [
        [
            (layer.in_channels, layer.out_channels, layer.kernel_size[0], layer.stride[0])
            for layer in branch.layers
            if isinstance(layer, nn.Conv2d)
        ]
        for branch in method.branches
    ]
    assert convolutions[0] == [
        (64, 64, 3, 2), (64, 128, 1, 1),
        (128, 128, 3, 2), (128, 256, 1, 1),
        (256, 256, 3, 2), (256, 512, 1, 1),
    ]  # fmt: skip
    assert convolutions[3] == [(512, 512, 1, 1)]
    assert [len(layers) for layers in convolutions] == [6, 4, 2, 1]
    depthwise = [layer for layer in method.branches[0].layers if getattr(layer, "groups", 1) > 1]
    assert [layer.groups for layer in depthwise] == [64, 128, 256]


def test_map_branch_width_of_mobilenet():
    shapes = [(24, 56, 56), (32, 28, 28), (96, 14, 14), (1280, 7, 7)]
    with torch.device("meta"):
        method = ofa(shapes)
    assert [branch.classifier.in_features for branch in method.branches] == [1280] * 4


@pytest.mark.parametrize(
    ("shapes", "ends"),
    [
        ([(192, 14, 14)] * 4, [7] * 4),
        ([(48, 56, 56), (96, 28, 28), (192, 14, 14), (384, 7, 7)], [7] * 4),
        ([(12, 4, 4)] * 4, [4] * 4),
        (pyramid((10, 5, 3, 2)), [5, 5, 3, 2]),
        (pyramid((15, 8, 4, 2)), [4, 4, 4, 2]),
    ],
)
def test_token_branch_sizes(shapes, ends):
    with torch.device("meta"):
        method = ofa(shapes, tokens=True)
        for branch, shape, end in zip(method.branches, shapes, ends):
            assert isinstance(branch, TokenBranch)
            found = sizes_at_the_end(branch, torch.empty(2, *shape))
            assert found == ((end, end), (2, CLASSES))
    assert [len(branch.blocks) for branch in method.branches] == [3, 2, 1, 1]
    assert all(block.self_attn.num_heads == 4 for block in method.branches[0].blocks)
    assert {branch.classifier.in_features for branch in method.branches} == {shapes[-1][0]}


@pytest.mark.parametrize("size", [(4, 6), (5, 7), (1, 1)])
def test_merging_joins_neighbours(size):
    merging = PatchMerging(3, 4)
    x = torch.randn(2, 3, *size)
    out = merging(x)
    height, width = (-(-side // 2) for side in size)
    assert out.shape == (2, 4, height, width)
    x[:, :, 0, 0] += 1
    moved = (merging(x) != out).any(1).any(0)
    assert moved.nonzero().tolist() == [[0, 0]]
    if size[1] == 6:
        x[:, :, 2, 5] += 1
        moved = (merging(x) != out).any(1).any(0)
        assert moved.nonzero().tolist() == [[0, 0], [1, 2]]


def test_tokens_see_each_other():
    branch = TokenBranch((4, 3, 3), depth=1, out_channels=4, num_classes=CLASSES)
    x = torch.randn(2, 4, 3, 3)
    # Without position encodings, the mean does not know the order.
    torch.testing.assert_close(branch(x), branch(x.flip(2)))
    x.requires_grad_()
    branch.blocks(branch.merging(x).flatten(2).transpose(1, 2))[:, 0].square().sum().backward()
    assert x.grad[:, :, 2, 2].any(), "the first token looks at the last"


@pytest.mark.parametrize("tokens", [False, True])
def test_value_of_a_branch(tokens):
    shapes = pyramid((8, 4, 2, 2))
    method = ofa(shapes, tokens, eps=[0.8, 1.0, 1.5, 2.0, 1.2], temperature=2.0, ofa_weight=3.0)
    features = [torch.randn(3, *shape) for shape in shapes]
    labels = torch.tensor([1, 4, 0])
    logits, target = torch.randn(2, 3, CLASSES)
    student = NetworkOutputs(features, logits, labels=labels)
    losses = method(student, NetworkOutputs(logits=target), lambda prompt: None)

    p = (target / 2).double().softmax(1)
    one_hot = nn.functional.one_hot(labels, CLASSES).double()

    def loss(own, eps):
        weight = (p + one_hot) ** eps - one_hot
        return -(weight * (own / 2).double().log_softmax(1)).sum(1).mean()

    branches = zip(method.branches, features, method.eps)
    expected = 3 * sum(loss(branch(x), eps) for branch, x, eps in branches)
    torch.testing.assert_close(losses["loss_ofa"].double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(losses["loss_kd"].double(), loss(logits, 1.2), rtol=1e-5, atol=0)
    same = ofa_loss(logits, target, labels, 1.2, 2.0)
    torch.testing.assert_close(losses["loss_kd"], same)


@pytest.mark.parametrize("count", [1, 4, 6])
def test_wrong_number_of_exponents(count):
    with pytest.raises(ValueError, match=f"eps has to be one number or 5, not {count}"):
        ofa(pyramid((8, 4, 2, 1)), eps=[1.0] * count)


def test_one_exponent_is_for_all():
    assert ofa(pyramid((8, 4, 2, 1)), eps=1.5).eps == [1.5] * 5
