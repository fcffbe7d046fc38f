"""Tests of the layers: RAA, the aligners and projectors, AFP."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F

from pat_mmdet.models.layers import (
    AdaptiveFeedbackPrompt,
    FeatureProjector,
    MapAligner,
    RegionAwareAttention,
    TokenAligner,
    shifted_means,
    valid_fractions,
)

HALVES = [torch.float16, torch.bfloat16]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def count(*modules):
    return sum(p.numel() for module in modules for p in module.parameters())


# --------------------------------------------------------------------------- RAA


def small_raa(**kwargs):
    kwargs = {"grid": 2, "dim": 16, "num_heads": 4, **kwargs}
    return RegionAwareAttention([3, 5], [(8, 8), (4, 4)], **kwargs)


def small_maps(batch=2, dtype=torch.float32):
    return [torch.randn(batch, 3, 8, 8, dtype=dtype), torch.randn(batch, 5, 4, 4, dtype=dtype)]


def reference_raa(raa, maps):
    """RAA with convolutions, an explicit softmax and encodings from their definition."""
    tokens = []
    for conv, x in zip(raa.embeds, maps):
        side = raa.grid * conv.kernel_size[0]
        x = F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
        tokens.append(torch.einsum("bdij->bijd", conv(x)).reshape(len(x), -1, raa.dim))
    tokens = torch.cat(tokens, 1)
    mean = tokens.mean(-1, keepdim=True)
    std = (tokens.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    tokens = (tokens - mean) / std * raa.norm.weight + raa.norm.bias
    table = torch.zeros(tokens.shape[1], raa.dim, dtype=tokens.dtype)
    for n in range(tokens.shape[1]):
        for d in range(raa.dim):
            angle = n / 10000 ** ((d - d % 2) / raa.dim)
            table[n, d] = math.cos(angle) if d % 2 else math.sin(angle)
    head = raa.dim // raa.num_heads
    query, key, value = (
        (tokens @ layer.weight.T + layer.bias + extra).reshape(*tokens.shape[:2], -1, head)
        for layer, extra in ((raa.query, table), (raa.key, table), (raa.value, 0))
    )
    scores = torch.einsum("bnhd,bmhd->bhnm", query, key) / head**0.5
    out = torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), value).reshape(tokens.shape)
    return [
        part.reshape(len(part), raa.grid, raa.grid, raa.dim).permute(0, 3, 1, 2)
        for part in out.split(raa.grid**2, dim=1)
    ]


@pytest.mark.parametrize("sizes", [((8, 8), (4, 4)), ((9, 13), (7, 3)), ((1, 1), (2, 30))])
def test_raa_equals_reference_at_any_size(sizes):
    raa = small_raa()
    maps = [torch.randn(2, c, *size, requires_grad=True) for c, size in zip((3, 5), sizes)]
    ours, theirs = raa(maps), reference_raa(raa, maps)
    assert [tuple(x.shape) for x in ours] == [(2, 16, 2, 2)] * 2
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    inputs = [*maps, *raa.parameters()]
    # The key's bias moves all scores of a query alike: its gradient is rounding noise around 0.
    for a, b in zip(
        torch.autograd.grad(sum(x.pow(2).sum() for x in ours), inputs),
        torch.autograd.grad(sum(x.pow(2).sum() for x in theirs), inputs),
    ):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)


def test_raa_attention_is_what_forward_uses():
    raa, maps = small_raa(), small_maps()
    values = []
    raa.value.register_forward_hook(lambda module, args, output: values.append(output))
    outputs = torch.stack(raa(maps), 1)  # (B, S, dim, grid, grid)
    attention = raa.attention(maps)
    assert attention.shape == (2, 4, 2, 2, 2, 2, 2, 2)
    torch.testing.assert_close(attention.sum((5, 6, 7)), torch.ones(2, 4, 2, 2, 2))
    value = values[0].reshape(2, 2, 2, 2, 4, 4)  # B, S, grid, grid, heads, channels
    mixed = torch.einsum("bhsijtkl,btklhc->bshcij", attention, value).flatten(2, 3)
    torch.testing.assert_close(mixed, outputs)


def test_raa_kernel_size():
    raa = RegionAwareAttention([2] * 4, [(13, 40), (10, 4), (2, 2), (1, 1)], grid=5, dim=8)
    assert [conv.kernel_size for conv in raa.embeds] == [(3, 3), (2, 2), (1, 1), (1, 1)]
    assert [conv.stride for conv in raa.embeds] == [(3, 3), (2, 2), (1, 1), (1, 1)]
    out = raa([torch.randn(1, 2, *size) for size in [(13, 40), (10, 4), (2, 2), (1, 1)]])
    assert [tuple(x.shape) for x in out] == [(1, 8, 5, 5)] * 4


def test_raa_of_one_region_and_odd_width():
    raa = RegionAwareAttention([2], [(3, 3)], grid=1, dim=3, num_heads=1)
    assert raa([torch.randn(2, 2, 4, 5)])[0].shape == (2, 3, 1, 1)


def swap_regions(x, side):
    """Swaps the first and the last region of a map cut into regions of ``side``."""
    x = x.clone()
    first = x[..., :side, :side].clone()
    x[..., :side, :side] = x[..., -side:, -side:]
    x[..., -side:, -side:] = first
    return x


def test_raa_region_swap():
    raa = small_raa()
    maps = small_maps()
    swapped = [swap_regions(maps[0], 4), maps[1]]
    before, after = raa(maps), raa(swapped)
    assert (swap_regions(before[0], 1) - after[0]).abs().max() > 1e-3
    assert (before[1] - after[1]).abs().max() > 1e-3
    # Control: without the encodings the swap is all there is.
    raa.positions.zero_()
    before, after = raa(maps), raa(swapped)
    torch.testing.assert_close(swap_regions(before[0], 1), after[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(before[1], after[1], atol=1e-6, rtol=1e-5)


def test_raa_batch_permutation():
    raa = small_raa()
    maps = small_maps(batch=4)
    order = torch.tensor([2, 0, 3, 1])
    for a, b in zip(raa(maps), raa([x[order] for x in maps])):
        assert torch.equal(a[order], b)


def test_raa_positions_are_not_saved():
    raa = small_raa()
    assert raa.positions.shape == (1, 8, 16)
    assert "positions" not in raa.state_dict()


@pytest.mark.parametrize("dtype", HALVES)
def test_raa_in_half_precision(dtype):
    raa = small_raa()
    maps = small_maps()
    with torch.autocast("cpu", dtype=dtype):
        out = raa(maps)
    assert all(x.dtype == dtype and x.isfinite().all() for x in out)
    sum(x.float().sum() for x in out).backward()
    assert all(p.grad.isfinite().all() for p in raa.parameters())
    for a, b in zip(out, raa(maps)):
        torch.testing.assert_close(a.float(), b, atol=0.05, rtol=0.05)


def test_raa_errors_name_the_remedy():
    with pytest.raises(ValueError, match=r"dim=20 .* 8 heads.* 24"):
        small_raa(dim=20, num_heads=8)
    with pytest.raises(ValueError, match="one of each per stage"):
        RegionAwareAttention([3, 5], [(8, 8)])
    with pytest.raises(ValueError, match="3 feature maps for 2 stages"):
        small_raa()([*small_maps(), torch.randn(2, 5, 4, 4)])


def test_raa_size_in_detection():
    sizes = [(200, 304), (100, 152), (50, 76), (25, 38), (13, 19)]
    with torch.device("meta"):
        raa = RegionAwareAttention([256] * 5, sizes, grid=5, dim=64)
    assert count(raa.embeds[0]) == 256 * 40 * 40 * 64 + 64
    assert 34.9e6 < count(raa) < 35.1e6


# --------------------------------------------------------------------------- aligners


def randomize(module):
    """Makes norms and biases visible: their initial values would hide an omission."""
    for p in module.parameters():
        torch.nn.init.normal_(p, std=0.5)
    for name, buffer in module.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_()
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return module


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("size", [(8, 12), (7, 9)])
def test_map_aligner_equals_upsampling_first(size, training):
    aligner = randomize(MapAligner(6, 10)).train(training)
    x = torch.randn(3, 6, 4, 4)
    out = aligner(x, size)
    assert out.shape == (3, 10, *size)
    if training and size == (7, 9):
        return  # regions are not copied equally often: other batch statistics, as documented
    twin = copy.deepcopy(aligner)
    late = twin.conv(twin.norm(F.interpolate(x, size=size, mode="nearest")))
    torch.testing.assert_close(out, late, atol=1e-5, rtol=1e-5)


def test_token_aligner_mixes_width_then_tokens():
    aligner = randomize(TokenAligner(6, 4, 10, (3, 5))).eval()
    x = torch.randn(2, 6, 2, 2)
    out = aligner(x, (3, 5))
    assert out.shape == (2, 10, 3, 5)

    def normed(norm, value, shape):
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        shift = norm.bias - norm.running_mean * scale
        return value * scale.reshape(shape) + shift.reshape(shape)

    tokens = torch.stack([x[:, :, i // 2, i % 2] for i in range(4)], 1)  # B, N, D, row by row
    tokens = normed(aligner.width_norm, tokens, (1, 1, 6))
    tokens = torch.einsum("bnd,od->bno", tokens, aligner.width.weight) + aligner.width.bias
    tokens = normed(aligner.token_norm, tokens, (1, 4, 1))
    tokens = torch.einsum("bno,mn->bmo", tokens, aligner.tokens.weight)
    tokens = tokens + aligner.tokens.bias[:, None]
    for row in range(3):
        for column in range(5):
            torch.testing.assert_close(
                out[:, :, row, column], tokens[:, row * 5 + column], atol=1e-5, rtol=1e-5
            )
    norms = [m for m in aligner.modules() if "Norm" in type(m).__name__]
    assert [type(m) for m in norms] == [torch.nn.BatchNorm1d] * 2
    with pytest.raises(ValueError, match="input_size"):
        aligner(x, (5, 3))


@pytest.mark.parametrize("size", [(3, 4), (1, 1), (12, 6)])
def test_projector_without_norm(size):
    projector, x = FeatureProjector(4, 7, norm=False), torch.randn(2, 4, 8, 6)
    expected = F.interpolate(projector.conv(x), size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(projector(x, size), expected)


@pytest.mark.parametrize("size", [(6, 8), (3, 10)])
def test_feature_projector(size):
    projector = FeatureProjector(4, 7)
    x = torch.randn(4, 4, 6, 8)
    out = projector(x, size)
    assert out.shape == (4, 7, *size)
    assert (out < 0).any()  # no ReLU: the targets are signed
    y = torch.einsum("oi,bihw->bohw", projector.conv.weight[:, :, 0, 0], x)
    y = y - y.mean((0, 2, 3), keepdim=True)
    y = y / (y.pow(2).mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
    y = F.interpolate(y, size=size, mode="bilinear", align_corners=False)
    torch.testing.assert_close(out, y, atol=1e-5, rtol=1e-5)


# --------------------------------------------------------------------------- shifted means

SIZES = [(1, 1), (2, 3), (7, 5), (14, 14)]


def loop_means(x):
    height, width = x.shape[-2:]
    out = x.new_zeros(*x.shape[:2], 5, 5)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            for row in range(height):
                for column in range(width):
                    if 0 <= row + dy < height and 0 <= column + dx < width:
                        out[:, :, dy + 2, dx + 2] += x[:, :, row + dy, column + dx]
    return out / (height * width)


@pytest.mark.parametrize(
    ("size", "layout"),
    [*((size, "contiguous") for size in SIZES), ((7, 5), "channels_last"), ((7, 5), "tokens")],
)
def test_shifted_means_equal_loops(size, layout):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    elif layout == "tokens":  # a map inside a sequence that begins with a class token
        tokens = torch.randn(2, size[0] * size[1] + 1, 3, dtype=torch.float64)
        x = tokens[:, 1:].transpose(1, 2).unflatten(2, size)
    torch.testing.assert_close(shifted_means(x), loop_means(x), atol=1e-12, rtol=1e-12)
    x.requires_grad_()
    weight = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    ours = torch.autograd.grad((shifted_means(x) * weight).sum(), x)[0]
    loops = torch.autograd.grad((loop_means(x) * weight).sum(), x)[0]
    torch.testing.assert_close(ours, loops, atol=1e-12, rtol=1e-12)


def test_pooled_convolution_from_shifted_means():
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    weight = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    pooled = F.conv2d(x, weight, padding=2).mean((2, 3))
    ours = torch.einsum("oiyx,biyx->bo", weight, shifted_means(x))
    torch.testing.assert_close(ours, pooled, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_valid_fractions(size):
    like = torch.zeros((), dtype=torch.float64)
    expected = loop_means(torch.ones(1, 1, *size, dtype=torch.float64))[0, 0]
    torch.testing.assert_close(valid_fractions(size, like), expected)


@pytest.mark.parametrize("new", [(14, 14), (3, 9), (7, 1), (2, 5)])
def test_shifted_means_of_a_resized_map(new):
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64)
    resized = F.interpolate(x, size=new, mode="bilinear", align_corners=False)
    torch.testing.assert_close(
        shifted_means(x, new), shifted_means(resized), atol=1e-12, rtol=1e-12
    )


def test_shifted_means_ignore_autocast():
    x = torch.randn(2, 3, 7, 5)
    expected = shifted_means(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(shifted_means(x), expected)
        assert shifted_means(x.half()).dtype == torch.float32


# --------------------------------------------------------------------------- AFP

FORMS = [("channel", None), ("channel", 8), ("channel", 6), ("spatial", None), ("spatial", 8)]
FORMS += [("spatial", 6)]


def prompt_block(prompt, feedback_channels, beta=0.7):
    block = randomize(AdaptiveFeedbackPrompt(8, feedback_channels, prompt, ratio=2))
    torch.nn.init.constant_(block.beta, beta)
    for name, p in block.named_parameters():
        if name.endswith("gate.reduce.bias"):
            torch.nn.init.constant_(p, 1.0)  # no dead ReLU, behind which nothing would be tested
    return block


def reference_afp(block, x, gap):
    """AFP as the paper words it, on dense maps; in the channel form only the gates go on."""

    def branch(convs, x):
        x = F.conv2d(x, convs.enter.weight, convs.enter.bias, groups=convs.enter.groups)
        kernel = convs.spread
        x = F.conv2d(x, kernel.weight, kernel.bias, padding=2, groups=kernel.groups)
        x = F.conv2d(x, convs.mix.weight, convs.mix.bias)
        squeezed = x.mean((2, 3))
        hidden = squeezed @ convs.gate.reduce.weight[:, :, 0, 0].T + convs.gate.reduce.bias
        gate = hidden.clamp(min=0) @ convs.gate.expand.weight[:, :, 0, 0].T
        gate = torch.sigmoid(gate + convs.gate.expand.bias)[:, :, None, None]
        x = gate if block.prompt == "channel" else gate * x
        return F.conv2d(x, convs.leave.weight, convs.leave.bias, groups=convs.leave.groups)

    y = x
    if block.feedback_channels is not None:
        gap = F.interpolate(gap, size=x.shape[-2:], mode="bilinear", align_corners=False)
        if block.feedback_channels != block.channels:
            gap = F.conv2d(gap, block.adapt.weight, block.adapt.bias)
        y = branch(block.fuse, torch.cat([x, gap], 1))
    return x + block.beta * branch(block.prompter, y)


@pytest.mark.parametrize("size, gap_size", [((1, 1), "same"), ((2, 3), "same"), ((7, 5), "half")])
@pytest.mark.parametrize("prompt, feedback_channels", FORMS)
def test_afp_equals_dense_reference(prompt, feedback_channels, size, gap_size):
    block = prompt_block(prompt, feedback_channels)
    x = torch.randn(2, 8, *size, requires_grad=True)
    gap = feedback = None
    if feedback_channels is not None:
        gap = torch.randn(2, feedback_channels, *size)
        if gap_size == "half":
            gap = gap[..., : -(-size[0] // 2), : -(-size[1] // 2)]
        feedback = block.encode_feedback(gap, size)
    ours, dense = block(x, feedback), reference_afp(block, x, gap)
    torch.testing.assert_close(ours, dense, atol=1e-5, rtol=1e-5)
    inputs = [x, *block.parameters()]
    weight = torch.randn_like(x)
    grads = torch.autograd.grad((ours * weight).sum(), inputs)
    expected = torch.autograd.grad((dense * weight).sum(), inputs)
    for a, b in zip(grads, expected):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
    assert grads[0].ne(weight).any()  # the prompt's own gradient reaches x, not only the identity


@pytest.mark.parametrize("feedback_channels", [None, 6])
def test_channel_prompt_is_not_naive_pooling(feedback_channels):
    """Pooling first and convolving the padded mean is a shortcut that the borders forbid."""
    block = prompt_block("channel", feedback_channels)
    x = torch.randn(2, 8, 7, 5)
    gap = torch.randn(2, 6, 7, 5)
    feedback = None if feedback_channels is None else block.encode_feedback(gap, (7, 5))
    mean = x.mean((2, 3), keepdim=True).expand_as(x)
    small = None if feedback_channels is None else gap.mean((2, 3), keepdim=True).expand_as(gap)
    naive = reference_afp(block, mean, small) - mean
    assert (block(x, feedback) - x - naive).abs().max() > 1e-3


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("prompt, feedback_channels", FORMS)
def test_untrained_prompt_is_the_identity(prompt, feedback_channels, dtype):
    block = AdaptiveFeedbackPrompt(8, feedback_channels, prompt)
    assert block.beta.shape == (1,) and block.beta.item() == 0
    x = (100 * torch.randn(2, 8, 5, 4)).to(dtype)
    feedback = None
    if feedback_channels is not None:
        feedback = block.encode_feedback(torch.randn(2, feedback_channels, 5, 4).to(dtype), (5, 4))
    for feed in (None, feedback):
        assert torch.equal(block(x, feed), x) and block(x, feed).dtype == dtype
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = block(x, feed)
        assert torch.equal(out, x) and out.dtype == dtype
    torch.nn.init.constant_(block.beta, 1.0)
    assert not torch.equal(block(x, feedback), x)


@pytest.mark.parametrize("prompt", ["channel", "spatial"])
def test_prompt_beyond_half_precision(prompt):
    block = prompt_block(prompt, 8, beta=0.0)
    with torch.no_grad():
        block.prompter.leave.weight.mul_(1e6)  # beyond the 65504 of float16
    x = torch.randn(2, 8, 5, 4).clamp(-3, 3).half()
    with torch.autocast("cpu", dtype=torch.float16):
        assert torch.equal(block(x, None), x)
        out = AdaptiveFeedbackPrompt(8, 8, prompt)(x * 2e4, None)
    assert torch.equal(out, x * 2e4)


@pytest.mark.parametrize("beta, first_step", [(0.0, True), (0.7, False)])
@pytest.mark.parametrize("prompt, feedback_channels", FORMS)
def test_every_parameter_gets_a_gradient(prompt, feedback_channels, beta, first_step):
    block = prompt_block(prompt, feedback_channels, beta)
    x = torch.randn(2, 8, 4, 4)
    feedback = None
    if feedback_channels is not None and not first_step:
        feedback = block.encode_feedback(torch.randn(2, feedback_channels, 4, 4), (4, 4))
    block(x, feedback).pow(2).sum().backward()
    assert [name for name, p in block.named_parameters() if p.grad is None] == []
    assert block.beta.grad != 0
    if beta:
        assert block.prompter.enter.weight.grad.abs().max() > 0


def test_modules_built_only_where_used():
    assert not hasattr(AdaptiveFeedbackPrompt(8, None), "fuse")
    assert not hasattr(AdaptiveFeedbackPrompt(8, 8), "adapt")
    assert AdaptiveFeedbackPrompt(8, 6).adapt.weight.shape == (8, 6, 1, 1)
    channel, spatial = (AdaptiveFeedbackPrompt(8, 6, form) for form in ("channel", "spatial"))
    assert channel.load_state_dict(spatial.state_dict())


@pytest.mark.parametrize("prompt, shape", [("channel", (3, 6, 5, 5)), ("spatial", (3, 6, 8, 10))])
def test_encoded_feedback_is_detached(prompt, shape):
    block = prompt_block(prompt, 6)
    gap = torch.randn(3, 6, 4, 5, requires_grad=True)
    summary = block.encode_feedback(gap, (8, 10))
    assert summary.shape == shape and not summary.requires_grad


@pytest.mark.parametrize("batch", [2, 5])
@pytest.mark.parametrize("prompt", ["channel", "spatial"])
def test_feedback_of_another_batch_size(prompt, batch):
    block = prompt_block(prompt, 6)
    gap = torch.randn(3, 6, 4, 5)
    x = torch.randn(1, 8, 4, 5).expand(batch, -1, -1, -1)
    out = block(x, block.encode_feedback(gap, (4, 5)))
    for row in range(batch):
        alone = block(x[:1], block.encode_feedback(gap[row % 3][None], (4, 5)))
        torch.testing.assert_close(out[row], alone[0], atol=1e-5, rtol=1e-5)
    assert (out[0] - out[1]).abs().max() > 1e-4


@pytest.mark.parametrize("prompt", ["channel", "spatial"])
def test_feedback_of_another_map_size(prompt):
    block = prompt_block(prompt, 6)
    x = torch.randn(2, 8, 6, 9)
    gap = torch.randn(2, 6, 4, 5)
    summary = block.encode_feedback(gap, (8, 10))
    out = block(x, summary)
    assert out.shape == x.shape
    if prompt == "spatial":
        resized = F.interpolate(summary, size=(6, 9), mode="bilinear", align_corners=False)
        torch.testing.assert_close(out, block(x, resized), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("prompt", ["channel", "spatial"])
def test_first_step_sends_zeros_through_fuse(prompt):
    block = prompt_block(prompt, 6)
    x = torch.randn(2, 8, 4, 5)
    zeros = block.encode_feedback(torch.zeros(2, 6, 4, 5), (4, 5))
    assert torch.equal(block(x, None), block(x, zeros))
    alone = prompt_block(prompt, None)
    alone.load_state_dict(block.state_dict(), strict=False)
    assert not torch.allclose(block(x, None), alone(x))


def test_channel_prompt_is_constant_per_channel():
    x = torch.randn(2, 8, 4, 5)
    flat = prompt_block("channel", None)(x) - x
    assert (flat - flat.mean((2, 3), keepdim=True)).abs().max() < 1e-5
    curved = prompt_block("spatial", None)(x) - x
    assert (curved - curved.mean((2, 3), keepdim=True)).abs().max() > 1e-2


def test_channel_prompt_convolves_no_map(monkeypatch):
    block = prompt_block("channel", 6)
    seen = []
    original = torch.nn.Conv2d.forward
    monkeypatch.setattr(
        torch.nn.Conv2d, "forward", lambda self, x: seen.append(x.shape[-2:]) or original(self, x)
    )
    block(torch.randn(2, 8, 9, 9), None)
    assert set(seen) == {(1, 1), (5, 5)}


def test_afp_errors_name_the_remedy():
    with pytest.raises(ValueError, match=r"'dense'.*channel, spatial"):
        AdaptiveFeedbackPrompt(8, 8, "dense")
    with pytest.raises(ValueError, match=r"channels=10 .* groups=4"):
        AdaptiveFeedbackPrompt(10, 8)
    x = torch.randn(2, 8, 4, 4)
    with pytest.raises(ValueError, match="without feedback"):
        AdaptiveFeedbackPrompt(8, None)(x, torch.zeros(2, 8, 5, 5))
    with pytest.raises(ValueError, match="encode_feedback"):
        AdaptiveFeedbackPrompt(8, 8)(x, torch.zeros(2, 8, 4, 4))


def test_parameter_count_of_the_paper():
    """ConvNeXt-T → DeiT-T: the paper's method has 14.48 M parameters beside the student."""
    inputs, outputs = (96, 96, 192, 384), (96, 192, 384, 768)
    with torch.device("meta"):
        raa = RegionAwareAttention([192] * 4, [(14, 14)] * 4, grid=4, dim=512)
        aligners = [MapAligner(512, width) for width in outputs]
        prompts = [AdaptiveFeedbackPrompt(c, f) for c, f in zip(inputs, outputs)]
    total = count(raa, *aligners, *prompts)
    assert total == 14_474_660
    assert abs(total - 14.48e6) < 0.05e6
