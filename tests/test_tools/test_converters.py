"""Converted weights compute what the networks they come from compute.

The sources are networks of this file, written after the papers and the documentation, with random
weights and the tensor names of the official Swin Transformer and of detectron2.
"""

import argparse
import re
import runpy
import shlex
from contextlib import redirect_stdout
from io import StringIO

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.tools import ROOT, run_tool
from mmcv.ops import roi_align
from mmdet.registry import MODELS
from mmengine.config import ConfigDict
from mmengine.logging import MMLogger
from mmengine.registry import init_default_scope
from torch import nn

from pat_mmdet.cli.arguments import add_cfg_options
from pat_mmdet.utils import load_config, load_weights

CONFIG = ROOT / "configs/teachers/faster-rcnn_swin-t_fpn_3x_coco.py"
WIDTH, HEADS, WINDOW = 16, (1, 2, 4, 8), 4


@pytest.fixture
def converter(monkeypatch):
    """Runs a converter as a script, but in this process: importing MMDetection takes seconds."""

    def run(name, *args):
        # Where Python looks first when it runs a script.
        monkeypatch.syspath_prepend(str(ROOT / "tools/model_converters"))
        monkeypatch.setattr("sys.argv", [name, *map(str, args)])
        MMLogger.get_current_instance()  # keeps the output there is when it is made
        with redirect_stdout(StringIO()) as out:
            runpy.run_path(str(ROOT / "tools/model_converters" / name), run_name="__main__")
        return out.getvalue()

    return run


def randomize(network, seed=0):
    """Draws all parameters, so that none keeps a value that hides an error; gives doubles."""
    torch.manual_seed(seed)
    for name, param in network.named_parameters():
        if "relative_position_bias_table" in name:
            nn.init.normal_(param, std=0.5)
        elif param.dim() == 1:
            nn.init.normal_(param, mean=float(name.endswith("weight")), std=0.3)
        else:
            nn.init.normal_(param, std=param[0].numel() ** -0.5)
    return network.double().eval()


def assert_same(ours, theirs):
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


# ---------------------------------------------------------------------- the official Swin


class Attention(nn.Module):
    """Attention in windows (B, w², C), with a bias for each offset of two positions."""

    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * WINDOW - 1) ** 2, heads))
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        at = torch.tensor([(y, x) for y in range(WINDOW) for x in range(WINDOW)])
        offset = at[:, None] - at[None] + WINDOW - 1
        index = offset[..., 0] * (2 * WINDOW - 1) + offset[..., 1]
        self.register_buffer("relative_position_index", index)

    def forward(self, x, allowed):
        split = self.qkv(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = split.permute(2, 0, 3, 1, 4)
        bias = self.relative_position_bias_table[self.relative_position_index].permute(2, 0, 1)
        scores = q @ k.mT * q.shape[-1] ** -0.5 + bias
        # The official code subtracts 100 instead, which after the softmax is nothing too.
        scores = scores.masked_fill(~allowed[:, None], -torch.inf)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """Maps (B, H, W, C) to the same."""

    def __init__(self, dim, heads, shifted, size):
        super().__init__()
        self.shift = WINDOW // 2 if shifted else 0
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = Attention(dim, heads)
        self.mlp = nn.Module()
        self.mlp.fc1, self.mlp.fc2 = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        if shifted:  # the official file has the mask for the size of ImageNet's images
            self.register_buffer("attn_mask", torch.zeros(size, WINDOW**2, WINDOW**2))

    def windows(self, x):
        x = x.unflatten(1, (-1, WINDOW)).unflatten(3, (-1, WINDOW))
        return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)

    def attend(self, x):
        height, width = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, -width % WINDOW, 0, -height % WINDOW))
        rows, columns = x.shape[1:3]
        x = x.roll((-self.shift, -self.shift), (1, 2))
        # Positions that were no neighbours before the shift do not see each other. Padding is seen.
        side = [(torch.arange(n) + self.shift >= n).long() for n in (rows, columns)]
        region = (2 * side[0][:, None] + side[1])[None, :, :, None]
        region = self.windows(region.expand(len(x), -1, -1, 1)).squeeze(-1)
        x = self.attn(self.windows(x), region[:, :, None] == region[:, None])
        x = x.unflatten(0, (-1, rows // WINDOW, columns // WINDOW)).unflatten(3, (WINDOW, WINDOW))
        x = x.transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return x.roll((self.shift, self.shift), (1, 2))[:, :height, :width]

    def forward(self, x):
        x = x + self.attend(self.norm1(x))
        return x + self.mlp.fc2(F.gelu(self.mlp.fc1(self.norm2(x))))


class Downsample(nn.Module):
    """Maps (B, H, W, C) to (B, H / 2, W / 2, 2 C)."""

    def __init__(self, dim):
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x):
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        corners = [x[:, i::2, j::2] for i, j in ((0, 0), (1, 0), (0, 1), (1, 1))]
        return self.reduction(self.norm(torch.cat(corners, -1)))


class OfficialSwin(nn.Module):
    """Gives four maps (B, C, H, W) of images (B, 3, H, W)."""

    def __init__(self, width=WIDTH):
        super().__init__()
        self.patch_embed = nn.Module()
        self.patch_embed.proj = nn.Conv2d(3, width, 4, 4)
        self.patch_embed.norm = nn.LayerNorm(width)
        self.layers = nn.ModuleList()
        for i, heads in enumerate(HEADS):
            layer = nn.Module()
            layer.blocks = nn.ModuleList(
                Block(width << i, heads, shifted, 4 ** (3 - i)) for shifted in (False, True)
            )
            if i < 3:
                layer.downsample = Downsample(width << i)
            self.layers.append(layer)
            setattr(self, f"norm{i}", nn.LayerNorm(width << i))

    def forward(self, images):
        x = self.patch_embed.norm(self.patch_embed.proj(images).permute(0, 2, 3, 1))
        maps = []
        for i, layer in enumerate(self.layers):
            for block in layer.blocks:
                x = block(x)
            # mmcv's RoIAlign reads any other order of the memory wrongly.
            maps.append(getattr(self, f"norm{i}")(x).permute(0, 3, 1, 2).contiguous())
            if i < 3:
                x = layer.downsample(x)
        return maps


@pytest.fixture(scope="module")
def swin():
    return randomize(OfficialSwin())


def official(swin):
    """The file of microsoft/Swin-Transformer: a classifier, and no norms between the layers."""
    state = {k: v for k, v in swin.state_dict().items() if not re.match(r"norm\d", k)}
    state["norm.weight"] = state["norm.bias"] = torch.rand(8 * WIDTH)
    state.update({"head.weight": torch.rand(5, 8 * WIDTH), "head.bias": torch.rand(5)})
    return {"model": state}


def timm_0_6(swin):
    return official(swin)["model"]


def timm_1(swin):
    state = {}
    for key, value in timm_0_6(swin).items():
        if key.endswith(("relative_position_index", "attn_mask")):
            continue
        key = re.sub(r"(?<=^layers\.)\d(?=\.downsample)", lambda m: str(int(m[0]) + 1), key)
        state[key.replace("head.", "head.fc.")] = value
    return state


def mmdet_swin(checkpoint):
    init_default_scope("mmdet")
    network = MODELS.build(
        ConfigDict(
            type="SwinTransformer",
            embed_dims=WIDTH,
            depths=(2, 2, 2, 2),
            num_heads=HEADS,
            window_size=WINDOW,
            init_cfg=dict(type="Pretrained", checkpoint=str(checkpoint)),
        )
    ).double()
    network.init_weights()
    network.eval()  # gives nothing back
    return network


@pytest.mark.parametrize("layout", [official, timm_0_6, timm_1])
def test_swin_equals_the_official_one(layout, swin, converter, tmp_path):
    torch.save(layout(swin), tmp_path / "in.pth")
    out = converter("swin.py", tmp_path / "in.pth", tmp_path / "new/out.pth")
    network = mmdet_swin(tmp_path / "new/out.pth")
    for i in range(4):
        getattr(network, f"norm{i}").load_state_dict(getattr(swin, f"norm{i}").state_dict())
    # Neither windows nor pairs of positions divide the maps: 18 × 22, 9 × 11, 5 × 6 and 3 × 3.
    images = torch.randn(2, 3, 72, 88, dtype=torch.float64)
    with torch.no_grad():
        assert_same(network(images), swin(images))
    for line in (
        "left out: 4 tensors",
        "embed_dims=16, depths=[2, 2, 2, 2], num_heads=[1, 2, 4, 8], window_size=4, mlp_ratio=4",
        "convert_weights=False",
    ):
        assert line in out


def test_swin_equals_timms(converter, tmp_path):
    timm_swin = pytest.importorskip("timm.models.swin_transformer")
    source = timm_swin.SwinTransformer(
        img_size=256, window_size=WINDOW, embed_dim=WIDTH, depths=(2, 2, 2, 2), num_heads=HEADS
    )
    torch.save(randomize(source).state_dict(), tmp_path / "in.pth")
    converter("swin.py", tmp_path / "in.pth", tmp_path / "out.pth")
    network = mmdet_swin(tmp_path / "out.pth")
    images = torch.randn(1, 3, 256, 256, dtype=torch.float64)
    with torch.no_grad():
        maps = network(images)
        x = source.patch_embed(images)
        for layer, ours in zip(source.layers, maps):
            x = layer(x)
            # New norms of MMDetection's change nothing but the mean and the deviation.
            assert_same([ours], [F.layer_norm(x, x.shape[-1:]).permute(0, 3, 1, 2)])


# ------------------------------------------------------------- a detector as detectron2's


class Detector(nn.Module):
    """A Faster R-CNN with the tensor names of detectron2.

    Args:
        classes (int): Number of classes.
        pooled (int): Height and width of a RoI's features.
        pixels (tuple, optional): Mean and deviation of the images.
    """

    def __init__(self, classes=3, pooled=3, pixels=None, width=8, hidden=12):
        super().__init__()
        self.pooled = pooled
        self.backbone = nn.Module()
        self.backbone.bottom_up = OfficialSwin()
        for i in range(4):
            setattr(self.backbone, f"fpn_lateral{i + 2}", nn.Conv2d(WIDTH << i, width, 1))
            setattr(self.backbone, f"fpn_output{i + 2}", nn.Conv2d(width, width, 3, padding=1))
        self.proposal_generator = nn.Module()
        self.proposal_generator.rpn_head = head = nn.Module()
        head.conv = nn.Conv2d(width, width, 3, padding=1)
        head.objectness_logits = nn.Conv2d(width, 3, 1)
        head.anchor_deltas = nn.Conv2d(width, 3 * 4, 1)
        self.proposal_generator.anchor_generator = nn.Module()
        cells = self.proposal_generator.anchor_generator.cell_anchors = nn.Module()
        for level in range(5):
            size = 32 * 2**level
            corners = [
                (-(size / r**0.5) / 2, -size * r**0.5 / 2, size / r**0.5 / 2, size * r**0.5 / 2)
                for r in (0.5, 1, 2)  # height to width
            ]
            cells.register_buffer(str(level), torch.tensor(corners))
        self.roi_heads = nn.Module()
        self.roi_heads.box_head = nn.Module()
        self.roi_heads.box_head.fc1 = nn.Linear(width * pooled**2, hidden)
        self.roi_heads.box_head.fc2 = nn.Linear(hidden, hidden)
        self.roi_heads.box_predictor = nn.Module()
        self.roi_heads.box_predictor.cls_score = nn.Linear(hidden, classes + 1)
        self.roi_heads.box_predictor.bbox_pred = nn.Linear(hidden, 4 * classes)
        for name, value in zip(("pixel_mean", "pixel_std"), pixels or ()):
            self.register_buffer(name, torch.tensor(value).view(3, 1, 1))

    def features(self, images):
        maps = self.backbone.bottom_up(images)
        outputs, above = [], 0
        for i in (5, 4, 3, 2):
            x = getattr(self.backbone, f"fpn_lateral{i}")(maps[i - 2]) + above
            outputs.insert(0, getattr(self.backbone, f"fpn_output{i}")(x))
            above = F.interpolate(x, scale_factor=2, mode="nearest")
        return [*outputs, outputs[-1][:, :, ::2, ::2]]

    def proposals(self, features):
        """Objectness (B, A, H, W) and boxes (B, H · W · A, 4) of each level."""
        head = self.proposal_generator.rpn_head
        scores, boxes = [], []
        for level, x in enumerate(features):
            cells = getattr(self.proposal_generator.anchor_generator.cell_anchors, str(level))
            x = F.relu(head.conv(x))
            scores.append(head.objectness_logits(x))
            height, width = x.shape[2:]
            stride = 4 * 2**level
            y, x_ = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
            corner = torch.stack([x_, y, x_, y], -1).double() * stride
            anchors = (corner[:, :, None] + cells).flatten(0, 2)
            deltas = head.anchor_deltas(x).unflatten(1, (3, 4)).permute(0, 3, 4, 1, 2)
            boxes.append(torch.stack([decode(anchors, d.flatten(0, 2)) for d in deltas]))
        return scores, boxes

    def classify(self, features, rois):
        """Scores (N, K + 1) and boxes (N, K, 4) of RoIs (N, 5) that start with the image."""
        sides = (rois[:, 3:] - rois[:, 1:3]).prod(1).sqrt()
        levels = (4 + (sides / 224).log2()).floor().clamp(2, 5)
        pooled = features[0].new_zeros(len(rois), features[0].shape[1], self.pooled, self.pooled)
        for i in (2, 3, 4, 5):
            pooled[levels == i] = roi_align(
                features[i - 2], rois[levels == i], self.pooled, 0.5**i, 0, "avg", True
            )
        x = F.relu(self.roi_heads.box_head.fc1(pooled.flatten(1)))
        x = F.relu(self.roi_heads.box_head.fc2(x))
        deltas = self.roi_heads.box_predictor.bbox_pred(x).unflatten(1, (-1, 4))
        boxes = [decode(rois[:, 1:], d, (10, 10, 5, 5)) for d in deltas.unbind(1)]
        return self.roi_heads.box_predictor.cls_score(x).softmax(-1), torch.stack(boxes, 1)


def random_detector(**options):
    detector = randomize(Detector(**options))
    # MMDetection shrinks no box more than to 1/62.5, detectron2 has no such bound; small deltas as
    # those of a trained network stay within it.
    for layer in (
        detector.proposal_generator.rpn_head.anchor_deltas,
        detector.roi_heads.box_predictor.bbox_pred,
    ):
        for param in layer.parameters():
            param.data *= 0.2
    return detector


def decode(boxes, deltas, weights=(1, 1, 1, 1)):
    """Moves and scales boxes (N, 4) of corners by (dx, dy, dw, dh)."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + size / 2
    deltas = deltas / torch.tensor(weights)
    centre = centre + deltas[:, :2] * size
    size = size * deltas[:, 2:].clamp(max=np.log(1000 / 16)).exp()
    return torch.cat([centre - size / 2, centre + size / 2], 1)


ROIS = torch.tensor(
    # One RoI or more for each level, in both images.
    [
        [0, 3, 5, 40, 60],
        [1, 0, 0, 90, 64],
        [0, -20, 3, 150, 130],
        [1, -60, -90, 210, 250],
        [0, -300, -200, 320, 310],
    ],
    dtype=torch.float64,
)


def mmdet_detector(checkpoint, out):
    """Builds the project's network with the options that the converter printed, and loads it."""
    assert "its 3 classes" in out
    parser = argparse.ArgumentParser()
    add_cfg_options(parser)
    options = shlex.split(re.search("(--cfg-options model.*)", out)[1])
    options = parser.parse_args([*options, "classes=('a','b','c')"]).cfg_options
    cfg = load_config(str(CONFIG), options)
    init_default_scope("mmdet")
    network = MODELS.build(cfg.model)
    load_weights(network, str(checkpoint))
    return network.double().eval()


@torch.no_grad()
def assert_same_detections(network, detector, images, source_images):
    features = detector.features(source_images)
    ours = network.extract_feat(images)
    assert [tuple(x.shape[2:]) for x in ours] == [(16, 24), (8, 12), (4, 6), (2, 3), (1, 2)]
    assert_same(ours, features)

    scores, boxes = detector.proposals(features)
    our_scores, deltas = network.rpn_head(ours)
    assert_same(our_scores, scores)
    anchors = network.rpn_head.prior_generator.grid_priors(
        [x.shape[2:] for x in ours], torch.float64, "cpu"
    )
    for level, theirs in enumerate(boxes):
        for i in range(len(images)):
            delta = deltas[level][i].permute(1, 2, 0).reshape(-1, 4)
            decoded = network.rpn_head.bbox_coder.decode(anchors[level], delta)
            assert_same([decoded], [theirs[i]])

    scores, boxes = detector.classify(features, ROIS)
    result = network.roi_head._bbox_forward(ours, ROIS)
    assert_same([result["cls_score"].softmax(-1)], [scores])
    coder = network.roi_head.bbox_head.bbox_coder
    assert_same([coder.decode(ROIS[:, 1:], result["bbox_pred"])], [boxes.flatten(1)])


def test_detector_equals_detectron2s(converter, tmp_path):
    detector = random_detector()
    state = detector.state_dict()
    torch.save({"model": state, "iteration": 7, "optimizer": {"state": {}}}, tmp_path / "in.pth")
    out = converter("detectron2_faster_rcnn.py", tmp_path / "in.pth", tmp_path / "out.pth")
    assert "does not say how images were normalised" in out
    network = mmdet_detector(tmp_path / "out.pth", out)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    assert_same_detections(network, detector, images, images)


def test_detector_trained_with_bgr_takes_rgb(tmp_path):
    pixels = ([103.53, 116.28, 123.675], [1.0, 2.0, 3.0])
    detector = random_detector(pixels=pixels)
    state = {
        key.replace("rpn_head.conv.", "rpn_head.conv.conv0."): value
        for key, value in detector.state_dict().items()
        if "cell_anchors" not in key
    }
    torch.save({"model": state}, tmp_path / "in.pth")
    args = (tmp_path / "in.pth", tmp_path / "out.pth", "--input-format", "BGR")
    out = run_tool("model_converters/detectron2_faster_rcnn.py", *args)
    assert "note:" not in out
    # The mean is the config's once it is in RGB, the deviation is not.
    assert "data_preprocessor.mean" not in out
    assert "model.data_preprocessor.std=[3.0,2.0,1.0]" in out
    network = mmdet_detector(tmp_path / "out.pth", out)
    bgr = [np.random.default_rng(0).integers(256, size=(3, 64, 96), dtype=np.uint8)] * 2
    # As MMDetection's pipeline gives images, and its preprocessor turns them to RGB.
    network.data_preprocessor.float()
    data = {"inputs": [torch.tensor(image) for image in bgr], "data_samples": None}
    images = network.data_preprocessor(data)["inputs"].double()
    source = (torch.tensor(np.stack(bgr)) - state["pixel_mean"]) / state["pixel_std"]
    assert_same([images.flip(1)], [source])
    assert_same_detections(network, detector, images, source)


def test_detector_of_a_mask_rcnn(converter, tmp_path):
    detector = random_detector(pixels=([103.53, 116.28, 123.675], [1.0, 1.0, 1.0]))
    state = {**detector.state_dict(), "roi_heads.mask_head.mask_fcn1.weight": torch.rand(1)}
    torch.save({"model": state}, tmp_path / "in.pth")
    args = (tmp_path / "in.pth", tmp_path / "out.pth", "--drop-mask-head")
    out = converter("detectron2_faster_rcnn.py", *args)
    assert "looks like that of BGR images" in out
    network = mmdet_detector(tmp_path / "out.pth", out)
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    assert_same_detections(network, detector, images, images)


# ------------------------------------------------------------------ MMDetection's own zoo


def test_zoo_mask_rcnn_into_faster_rcnn(tmp_path):
    options = {
        "model.backbone.embed_dims": WIDTH,
        "model.backbone.depths": [2, 2, 2, 2],
        "model.backbone.num_heads": list(HEADS),
        "model.backbone.window_size": WINDOW,
        "model.neck.in_channels": [WIDTH << i for i in range(4)],
        "model.neck.out_channels": 8,
        "model.rpn_head.in_channels": 8,
        "model.rpn_head.feat_channels": 8,
        "model.roi_head.bbox_roi_extractor.out_channels": 8,
        "model.roi_head.bbox_head.in_channels": 8,
        "model.roi_head.bbox_head.fc_out_channels": 12,
    }
    cfg = load_config(str(CONFIG), options).model
    init_default_scope("mmdet")
    faster = MODELS.build(cfg)
    cfg.type = "MaskRCNN"
    cfg.roi_head.mask_roi_extractor = cfg.roi_head.bbox_roi_extractor
    cfg.roi_head.mask_head = dict(
        type="FCNMaskHead", num_convs=1, in_channels=8, conv_out_channels=8, num_classes=80
    )
    mask = randomize(MODELS.build(cfg))
    meta = dict(
        env_info="sys.platform: linux",
        config="model = dict(type='MaskRCNN')\n",
        mmdet_version="2.16.0+1234567",
        CLASSES=("person", "bicycle"),
        epoch=36,
        hook_msgs={},
    )
    torch.save(dict(meta=meta, state_dict=mask.state_dict()), tmp_path / "zoo.pth")
    load_weights(faster, str(tmp_path / "zoo.pth"))
    faster = faster.double().eval()
    images = torch.randn(2, 3, 64, 96, dtype=torch.float64)
    with torch.no_grad():
        ours, theirs = faster.extract_feat(images), mask.extract_feat(images)
        assert_same(faster.backbone(images), mask.backbone(images))
        assert_same(ours, theirs)
        for a, b in zip(faster.rpn_head(ours), mask.rpn_head(theirs)):
            assert_same(a, b)
        boxes = [m.roi_head._bbox_forward(ours, ROIS) for m in (faster, mask)]
    for key in ("cls_score", "bbox_pred"):
        assert_same([boxes[0][key]], [boxes[1][key]])


# ------------------------------------------------------------------------ wrong sources

BLOCK = "layers.0.blocks.0.attn."
FOREIGN = {"model": {"a.weight": torch.zeros(1)}, "config": argparse.Namespace()}


def named(*keys):
    return {"model": {key: torch.zeros(1) for key in keys}}


def changed(state, **changes):
    """Weights in which dots in the names of the changes are double underscores; None removes."""
    state = {**state, **{key.replace("__", "."): value for key, value in changes.items()}}
    return {"model": {key: value for key, value in state.items() if value is not None}}


WRONG_SWIN = {
    "resnet": (
        named("conv1.weight", "layer1.0.conv1.weight"),
        ["is not a Swin", "conv1.weight, layer1"],
    ),
    "vit": (named("cls_token", "blocks.0.attn.qkv.weight"), ["is not a Swin", "cls_token"]),
    "swinv2": (
        named(f"{BLOCK}logit_scale", f"{BLOCK}qkv.weight"),
        ["is not a Swin Transformer (version 1)", "logit_scale"],
    ),
    "mmdet backbone": (
        named("backbone.stages.0.blocks.0.attn.w_msa.qkv.weight"),
        ["a network of MMDetection", "load it directly", "convert_weights=False"],
    ),
    "mmdet detector": (
        {"state_dict": named("backbone.conv1.weight", "neck.lateral_convs.0.conv.weight")["model"]},
        ["a network of MMDetection", "teacher_checkpoint"],
    ),
    "detectron2": (
        named(f"backbone.bottom_up.{BLOCK}relative_position_bias_table"),
        ["a detectron2 network", "detectron2_faster_rcnn.py"],
    ),
    "fork": (named(f"backbone.{BLOCK}qkv.weight", "neck.lateral_convs.0.weight"), ["authors' own"]),
    "torchvision": (
        named("features.0.0.weight", "features.1.0.attn.qkv.bias"),
        ["is not a Swin", "features.0.0.weight"],
    ),
    "unknown": (named("foo.weight", "bar.weight"), ["is not a Swin", "foo.weight, bar.weight"]),
    "no tensors": ({"epoch": 3}, ["its tensors are none"]),
    "foreign": (FOREIGN, ["is not a Swin", "its tensors are a.weight"]),
    "position": (
        lambda s: changed(s, absolute_pos_embed=torch.zeros(1)),
        ["1 unknown (backbone.absolute_pos_embed)"],
    ),
    "projection": (
        lambda s: changed(s, patch_embed__proj__weight=None),
        ["incomplete: patch_embed.proj.weight"],
    ),
    "incomplete": (
        lambda s: changed(s, layers__1__blocks__0__attn__qkv__weight=None),
        ["1 tensors are missing (backbone.stages.1.blocks.0.attn.w_msa.qkv.weight)"],
    ),
    "gap": (lambda s: changed(s, layers__2__downsample__norm__bias=None), ["downsample.norm.bias"]),
    "unknown part": (lambda s: changed(s, layers__0__foo=torch.zeros(1)), ["stages.0.foo"]),
    "shape": (
        lambda s: changed(s, layers__0__blocks__0__norm1__bias=torch.zeros(7)),
        ["norm1.bias (7,) instead of (16,)"],
    ),
    "windows": (
        lambda s: changed(
            s, layers__3__blocks__1__attn__relative_position_bias_table=torch.zeros(9, 8)
        ),
        ["relative_position_bias_table (9, 8) instead of (49, 8)"],
    ),
    "oblong": (
        lambda s: {
            k: v[:45] if k.endswith("bias_table") else v for k, v in s.items()
        },
        ["relative_position_bias_table (45, 1) instead of (25, 1)"],
    ),
}  # fmt: skip


def assert_one_clear_error(error, words):
    # A string as the code makes Python print it and end with 1.
    assert error.value.code.startswith("error: ") and "\n" not in error.value.code
    for word in words:
        assert word in error.value.code


@pytest.mark.parametrize("kind", WRONG_SWIN)
def test_swin_refuses(kind, swin, converter, tmp_path):
    content, words = WRONG_SWIN[kind]
    torch.save(content(timm_0_6(swin)) if callable(content) else content, tmp_path / "in.pth")
    with pytest.raises(SystemExit) as error:
        converter("swin.py", tmp_path / "in.pth", tmp_path / "out.pth")
    assert_one_clear_error(error, words)
    assert not (tmp_path / "out.pth").exists()


WRONG_DETECTOR = {
    "mmdet": (
        {"state_dict": named("backbone.conv1.weight", "rpn_head.rpn_cls.weight")["model"]},
        ["a network of MMDetection", "load it directly"],
    ),
    "imagenet": (named(f"{BLOCK}relative_position_bias_table"), ["model_converters/swin.py"]),
    "unknown": (named("foo.weight"), ["is not a detectron2 Faster R-CNN", "foo.weight"]),
    "resnet": (
        named("backbone.bottom_up.res2.0.conv1.weight"),
        ["is not a detectron2 Faster R-CNN with a Swin"],
    ),
    "c4": (
        named("backbone.res4.0.conv1.weight", "roi_heads.res5.0.conv1.weight"),
        ["with a Swin FPN"],
    ),
    "retinanet": (
        named("backbone.bottom_up.patch_embed.proj.weight", "head.cls_score.weight"),
        ["is not a detectron2 Faster R-CNN"],
    ),
    "foreign": (FOREIGN, ["is not a detectron2 Faster R-CNN", "its tensors are a.weight"]),
    "mask": (
        lambda s: changed(s, roi_heads__mask_head__deconv__weight=torch.zeros(1)),
        ["roi_heads.mask_head.deconv.weight", "--drop-mask-head"],
    ),
    "keypoints": (
        lambda s: changed(s, roi_heads__keypoint_head__conv_fcn1__weight=torch.zeros(1)),
        ["1 unknown (roi_heads.keypoint_head.conv_fcn1.weight)"],
    ),
    "cascade": (
        lambda s: changed(s, roi_heads__box_head__0__fc1__weight=torch.zeros(1)),
        ["1 unknown (roi_heads.box_head.0.fc1.weight)"],
    ),
    "rpn": (
        lambda s: changed(s, proposal_generator__rpn_head__conv__conv1__weight=torch.zeros(1)),
        ["1 unknown (proposal_generator.rpn_head.conv.conv1.weight)"],
    ),
    "box convolutions": (
        lambda s: changed(s, roi_heads__box_head__conv1__weight=torch.zeros(1)),
        ["1 unknown (roi_heads.box_head.conv1.weight)"],
    ),
    "norms": (
        lambda s: changed(s, backbone__fpn_output2__norm__weight=torch.zeros(1)),
        ["1 unknown (backbone.fpn_output2.norm.weight)"],
    ),
    "unknown part": (
        lambda s: changed(s, sem_seg__bias=torch.zeros(1)),
        ["1 unknown (sem_seg.bias)"],
    ),
    "missing": (
        lambda s: changed(s, backbone__fpn_output3__bias=None, roi_heads__box_head__fc1__bias=None),
        ["2 tensors", "(backbone.fpn_output3.bias, roi_heads.box_head.fc1.bias)"],
    ),
    "missing norm": (
        lambda s: changed(s, backbone__bottom_up__norm2__bias=None),
        ["1 tensors are missing (backbone.norm2.bias)"],
    ),
    "other backbone": (
        lambda s: {
            k.replace("attn.relative", "foo."): v for k, v in s.items() if "anchor" not in k
        },
        ["2 tensors of the FPN and the heads are missing"],
    ),
    "anchors": (
        lambda s: changed(
            s, proposal_generator__anchor_generator__cell_anchors__1=torch.zeros(15, 4)
        ),
        ["[3, 15, 3, 3, 3] anchors"],
    ),
    "levels": (
        lambda s: changed(s, proposal_generator__anchor_generator__cell_anchors__4=None),
        ["[3, 3, 3, 3] anchors"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def detector_state():
    return Detector().state_dict()


@pytest.mark.parametrize("kind", WRONG_DETECTOR)
def test_detector_refuses(kind, detector_state, converter, tmp_path):
    content, words = WRONG_DETECTOR[kind]
    torch.save(content(detector_state) if callable(content) else content, tmp_path / "in.pth")
    with pytest.raises(SystemExit) as error:
        converter("detectron2_faster_rcnn.py", tmp_path / "in.pth", tmp_path / "out.pth")
    assert_one_clear_error(error, words)
    assert not (tmp_path / "out.pth").exists()


def test_detector_refuses_pickle(converter):
    with pytest.raises(SystemExit) as error:
        converter("detectron2_faster_rcnn.py", "model_final.pkl", "out.pth")
    assert_one_clear_error(
        error, ["'model_final.pkl' is a pickle", "pickle.load(file", "torch.save"]
    )


def test_error_of_the_program(tmp_path):
    torch.save(named("layer1.0.conv1.weight"), tmp_path / "in.pth")
    out = run_tool("model_converters/swin.py", tmp_path / "in.pth", tmp_path / "out.pth", code=1)
    errors = [
        line for line in out.splitlines() if line.startswith("error: the source is not a Swin")
    ]
    assert len(errors) == 1 and "Traceback" not in out
