"""Window attention of frozen Swin transformers."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from helpers.networks import assert_equal_networks, changed_pair
from mmengine.registry import MODELS, init_default_scope

from pat_mmdet.models.acceleration import use_fast_layers, window_attention
from pat_mmdet.models.acceleration.window_attention import (
    batch_window_indices,
    image_window_indices,
)


def forms(network):
    return {type(module).__name__ for module in network.modules()}


@pytest.mark.parametrize(
    "heads, window, size",
    [
        ((1, 2, 4, 8), 7, (2, 64, 64)),
        ((1, 2, 4, 8), 7, (3, 33, 240)),
        ((2, 2, 2, 2), 4, (1, 100, 140)),
    ],
)
def test_mmdet_swin(size, heads, window):
    init_default_scope("mmdet")
    cfg = dict(
        type="SwinTransformer",
        embed_dims=16,
        depths=(2, 2, 2, 2),
        num_heads=heads,
        window_size=window,
    )
    own, faster = changed_pair(MODELS.build(cfg), use_fast_layers)
    assert {"FastShiftWindowMSA", "FastLinear"} <= forms(faster)
    batch, *image = size
    assert_equal_networks(own, faster, torch.randn(batch, 3, *image))


@pytest.mark.parametrize("pad_small_map", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (56, 112)])
def test_mmpretrain_swin(size, pad_small_map):
    init_default_scope("mmpretrain")
    cfg = dict(
        type="SwinTransformer",
        arch=dict(embed_dims=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8]),
        img_size=size[0],
        window_size=7,
        pad_small_map=pad_small_map,
        out_indices=(0, 1, 2, 3),
    )
    own, faster = changed_pair(MODELS.build(cfg), use_fast_layers)
    assert "FastShiftWindowMSA" in forms(faster)
    images = torch.randn(2, 3, *size)
    if not pad_small_map:
        # Its own refusal of maps smaller than a window is kept.
        for network in (own, faster):
            with pytest.raises(AssertionError, match="pad_small_map"):
                network(images)
        return
    assert_equal_networks(own, faster, images)


@pytest.mark.parametrize("shape", [(56, 56), (50, 41)])
def test_padded_windows_of_timm_swin(shape):
    import timm

    network = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=tuple(4 * side for side in shape),
        embed_dim=16,
        depths=(2, 2),
        num_heads=(1, 2),
        strict_img_size=False,
    )
    own, faster = changed_pair(network, use_fast_layers)
    assert_equal_networks(own, faster, torch.randn(2, 3, *(4 * side for side in shape)))


def partition(maps, window, shift, pad_first):
    """Windows of maps (B, H, W) as libraries cut them, -1 for padding: (B, rows, columns, N)."""
    pad = (0, -maps.shape[2] % window[1], 0, -maps.shape[1] % window[0])
    back = tuple(-step for step in shift)
    if pad_first:
        maps = F.pad(maps, pad, value=-1).roll(back, (1, 2))
    else:
        maps = F.pad(maps.roll(back, (1, 2)), pad, value=-1)
    rows, columns = maps.shape[1] // window[0], maps.shape[2] // window[1]
    maps = maps.view(len(maps), rows, window[0], columns, window[1])
    return maps.transpose(2, 3).flatten(3)


@pytest.mark.parametrize("batch_size, size", [(1, (4, 6)), (3, (5, 9)), (2, (2, 3))])
@pytest.mark.parametrize("shift", [(0, 0), (2, 1), (0, 1)])
@pytest.mark.parametrize("pad_first", [True, False])
def test_window_indices(batch_size, size, shift, pad_first):
    window = (4, 3)
    tokens = torch.arange(batch_size * size[0] * size[1]).view(batch_size, *size)
    expected = partition(tokens, window, shift, pad_first)
    rows, columns = expected.shape[1:3]
    by_mask = [[], [], [], []]
    for row, column in itertools.product(range(rows), range(columns)):
        lower, right = shift[0] and row == rows - 1, shift[1] and column == columns - 1
        by_mask[2 * bool(lower) + bool(right)] += list(expected[:, row, column])
    indices = batch_window_indices(batch_size, size, window, shift, pad_first, torch.device("cpu"))
    assert indices.num_windows == tuple(map(len, by_mask))
    found = indices.gather_index.clone()
    found[indices.padding] = -1
    assert torch.equal(found, torch.cat([*itertools.chain(*by_mask)]))
    assert torch.equal(found[indices.scatter_index], tokens.flatten())


def test_indices_are_cached_by_image_size():
    image_window_indices.cache_clear()
    batch_window_indices.cache_clear()
    init_default_scope("mmdet")
    cfg = dict(
        type="SwinTransformer", embed_dims=8, depths=(2, 2), num_heads=(1, 2),
        strides=(4, 2), out_indices=(0, 1), window_size=4,
    )  # fmt: skip
    _, faster = changed_pair(MODELS.build(cfg), use_fast_layers)
    for batch_size in (1, 1, 2, 3):
        faster(torch.randn(batch_size, 3, 64, 96))
    assert image_window_indices.cache_info().misses == 4  # two stages, shifted or not
    assert batch_window_indices.cache_info().misses == 3 * 4


def small_swin(**options):
    init_default_scope("mmdet")
    cfg = dict(
        type="SwinTransformer", embed_dims=8, depths=(2,), num_heads=(2,),
        strides=(4,), out_indices=(0,), window_size=4,
    )  # fmt: skip
    return MODELS.build({**cfg, **options})


def test_fused_kernel_is_taken(monkeypatch):
    plain, fast = changed_pair(small_swin(), use_fast_layers)
    calls = []
    kernel = F.scaled_dot_product_attention

    def count(*args, **kwargs):
        calls.append(args[0].shape)
        return kernel(*args, **kwargs)

    monkeypatch.setattr(window_attention.F, "scaled_dot_product_attention", count)
    x = torch.randn(2, 3, 32, 48)
    plain(x)
    assert calls == []
    fast(x)
    # 2 x 3 windows in two images: all alike, then inner ones, right, lower, corner.
    assert [shape[0] for shape in calls] == [12, 4, 2, 4, 2]


def test_cached_bias_follows_the_weights():
    plain, fast = changed_pair(small_swin(), use_fast_layers)
    x = torch.randn(1, 3, 32, 32)
    fast(x)
    for network in (plain, fast):
        for name, param in network.named_parameters():
            if name.endswith("relative_position_bias_table"):
                with torch.no_grad():
                    param.copy_(torch.linspace(-3, 3, param.numel()).view(param.shape))
    torch.testing.assert_close(fast(x)[0], plain(x)[0], rtol=1e-4, atol=1e-4)


def test_obstacles_are_named():
    obstacle = window_attention.FastShiftWindowMSA.obstacle
    network = small_swin()
    block = network.stages[0].blocks[0].attn
    assert obstacle(block) == "it is not frozen"
    block.requires_grad_(False)
    assert obstacle(block) is None
    block.w_msa.scale = 0.1
    assert obstacle(block) == "it scales queries by 0.1"
    del block.w_msa.relative_position_bias_table
    assert obstacle(block) == "it has no w_msa.relative_position_bias_table"
    del block.shift_size
    assert obstacle(block) == "it has no shift_size"


def test_swin_v2_stays_as_it_is():
    init_default_scope("mmpretrain")
    cfg = dict(
        type="SwinTransformerV2",
        arch=dict(embed_dims=16, depths=[2, 2], num_heads=[1, 2], extra_norm_every_n_blocks=0),
        img_size=64,
        window_size=8,
        out_indices=(0, 1),
    )
    plain, fast = changed_pair(MODELS.build(cfg), use_fast_layers)
    assert "ShiftWindowMSA" in forms(fast) and "FastLinear" in forms(fast)
    assert_equal_networks(plain, fast, torch.randn(1, 3, 64, 64))
