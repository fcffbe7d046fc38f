"""torchvision's operators in place of mmcv's, against loops in double precision."""

import importlib
import math
import subprocess
import sys
from pathlib import Path

import mmdet
import numpy as np
import pytest
import torch
from helpers.tools import ROOT
from mmcv.ops import ModulatedDeformConv2d, batched_nms, nms, roi_align, sigmoid_focal_loss
from mmcv.utils import collect_env
from mmdet.models.losses.focal_loss import py_sigmoid_focal_loss
from mmdet.registry import MODELS
from mmdet.testing import demo_mm_inputs
from mmengine.config import Config
from mmengine.registry import init_default_scope

import pat_mmdet.utils.torchvision_ops as torchvision_ops

compiled_ops = importlib.import_module("mmcv._ext")
needs_compiled_mmcv = pytest.mark.skipif(
    not compiled_ops.__file__.endswith((".so", ".pyd")),
    reason="the installed mmcv has no compiled operators (make env MMCV=full)",
)


OPERATORS = ("nms", "roi_align", "focal_loss", "modulated_deform_conv")


def use_operators(monkeypatch, operators, names=OPERATORS):
    """Makes mmcv.ops call the operators of this module."""
    for name in names:
        module = importlib.import_module(f"mmcv.ops.{name}")
        monkeypatch.setattr(module, "ext_module", operators)


@pytest.fixture(autouse=True)
def by_torchvision(monkeypatch):
    use_operators(monkeypatch, torchvision_ops)


def random_boxes(count, size, seed=0):
    generator = np.random.default_rng(seed)
    corners = generator.uniform(0, 0.7 * size, (count, 2))
    return np.hstack([corners, corners + generator.uniform(0, 0.5 * size, (count, 2))])


# --- non-maximum suppression


def nms_reference(boxes, scores, threshold, offset):
    kept = []
    for i in np.argsort(-scores, kind="stable"):
        for j in kept:
            width = min(boxes[i][2], boxes[j][2]) - max(boxes[i][0], boxes[j][0]) + offset
            height = min(boxes[i][3], boxes[j][3]) - max(boxes[i][1], boxes[j][1]) + offset
            overlap = max(width, 0) * max(height, 0)
            areas = [(b[2] - b[0] + offset) * (b[3] - b[1] + offset) for b in (boxes[i], boxes[j])]
            if overlap / (sum(areas) - overlap) > threshold:
                break
        else:
            kept.append(i)
    return kept


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [0.3, 0.7])
def test_nms(offset, threshold):
    boxes = random_boxes(60, 30)
    scores = np.random.default_rng(1).permutation(60) / 60
    expected = nms_reference(boxes, scores, threshold, offset)
    assert 1 < len(expected) < 60
    dets, indices = nms(boxes, scores, threshold, offset)
    assert indices.tolist() == expected
    np.testing.assert_array_equal(dets, np.hstack([boxes, scores[:, None]])[expected])


def test_nms_offset_changes_the_overlap():
    boxes = np.array([[0.0, 0.0, 4.0, 4.0], [2.0, 0.0, 6.0, 4.0]])  # IoU 1/3, with offset 3/7
    scores = np.array([0.9, 0.8])
    assert nms(boxes, scores, 0.4, offset=0)[1].tolist() == [0, 1]
    assert nms(boxes, scores, 0.4, offset=1)[1].tolist() == [0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_nms_with_half_precision(dtype):
    boxes = torch.tensor([[0, 0, 8, 8], [0, 0, 8, 7], [20, 20, 24, 24]], dtype=dtype)
    scores = torch.tensor([0.5, 0.75, 0.25])
    assert nms(boxes, scores.to(dtype), 0.5)[1].tolist() == [1, 2]
    assert nms(boxes, scores, 0.5)[1].tolist() == [1, 2]


def test_nms_without_boxes():
    dets, indices = nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5)
    assert indices.shape == (0,)
    assert indices.dtype == torch.int64


def test_batched_nms_between_classes():
    boxes = torch.tensor([[0.0, 0.0, 10.0, 10.0]] * 3)
    scores = torch.tensor([0.9, 0.8, 0.7])
    _, kept = batched_nms(
        boxes, scores, torch.tensor([0, 1, 0]), dict(type="nms", iou_threshold=0.5)
    )
    assert kept.tolist() == [0, 1]


# --- RoIAlign


def bilinear_reference(image, y, x):
    """Interpolates a map (H, W) as Detectron2 does: zero from a pixel outside of the border on."""
    height, width = image.shape
    if not (-1 <= y <= height and -1 <= x <= width):
        return 0.0
    y, x = max(y, 0), max(x, 0)
    top, left = min(int(y), height - 1), min(int(x), width - 1)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    down = y - top if top < height - 1 else 0
    across = x - left if left < width - 1 else 0
    upper = image[top, left] * (1 - across) + image[top, right] * across
    lower = image[bottom, left] * (1 - across) + image[bottom, right] * across
    return upper * (1 - down) + lower * down


def roi_align_reference(maps, rois, size, scale, sampling_ratio, aligned):
    output = np.zeros((len(rois), maps.shape[1], size, size))
    for n, (index, *corners) in enumerate(rois):
        left, top, right, bottom = (c * scale - 0.5 * aligned for c in corners)
        width, height = right - left, bottom - top
        if not aligned:
            width, height = max(width, 1), max(height, 1)
        rows = sampling_ratio or math.ceil(height / size)
        columns = sampling_ratio or math.ceil(width / size)
        for channel, i, j in np.ndindex(output.shape[1:]):
            points = [
                bilinear_reference(
                    maps[int(index), channel],
                    top + (i + (a + 0.5) / rows) * height / size,
                    left + (j + (b + 0.5) / columns) * width / size,
                )
                for a in range(rows)
                for b in range(columns)
            ]
            output[n, channel, i, j] = np.mean(points)
    return output


@pytest.fixture(scope="module")
def maps_and_rois():
    """Two maps of a quarter of the image's size, and RoIs of which some reach over the border."""
    maps = np.random.default_rng(0).normal(size=(2, 3, 9, 11))
    boxes = random_boxes(6, 44)
    boxes[0] = (-3, -2, 20, 15)
    boxes[1] = (30, 20, 50, 41)
    return maps, np.hstack([[[0], [1], [0], [1], [1], [0]], boxes])


@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_roi_align(maps_and_rois, sampling_ratio, aligned, memory_format):
    maps, rois = map(torch.from_numpy, maps_and_rois)
    expected = roi_align_reference(*maps_and_rois, 4, 0.25, sampling_ratio, aligned)
    maps = maps.to(memory_format=memory_format)
    output = roi_align(maps, rois, 4, 0.25, sampling_ratio, "avg", aligned)
    np.testing.assert_allclose(output, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_gradient(maps_and_rois, aligned):
    maps, rois = map(torch.from_numpy, maps_and_rois)
    maps.requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: roi_align(x, rois, 2, 0.25, 0, "avg", aligned), maps, fast_mode=True
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roi_align_with_half_precision(maps_and_rois, dtype):
    maps, rois = (torch.from_numpy(x).to(dtype) for x in maps_and_rois)
    maps.requires_grad_()
    exact = maps.detach().double().requires_grad_()
    expected = roi_align(exact, rois.double(), 4, 0.25, 2, "avg", True)
    output = roi_align(maps, rois, 4, 0.25, 2, "avg", True)
    assert output.dtype == dtype
    output.sum().backward()
    expected.sum().backward()
    tolerance = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(output.double(), expected, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(maps.grad.double(), exact.grad, rtol=tolerance, atol=tolerance)


def test_roi_align_without_rois():
    maps = torch.ones(2, 3, 8, 8, requires_grad=True)
    output = roi_align(maps, torch.zeros(0, 5), 7, 0.25, 0, "avg", True)
    assert output.shape == (0, 3, 7, 7)
    output.sum().backward()
    assert torch.equal(maps.grad, torch.zeros(2, 3, 8, 8))


def test_roi_align_has_no_max_pooling(maps_and_rois):
    maps, rois = map(torch.from_numpy, maps_and_rois)
    with pytest.raises(NotImplementedError, match=r"no pool_mode='max'.*\n.*MMCV_WITH_OPS=1"):
        roi_align(maps, rois, 4, 0.25, 0, "max", True)


# --- focal loss


def focal_loss_reference(logits, targets, gamma, alpha):
    losses = np.zeros_like(logits)
    for n, c in np.ndindex(logits.shape):
        p = 1 / (1 + math.exp(-logits[n, c]))
        if targets[n] == c:
            losses[n, c] = -alpha * (1 - p) ** gamma * math.log(p)
        else:
            losses[n, c] = -(1 - alpha) * p**gamma * math.log(1 - p)
    return losses


@pytest.fixture
def logits_and_targets():
    """Logits of 5 classes; the last targets are background."""
    logits = torch.randn(12, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return 3 * logits, torch.tensor([0, 1, 2, 3, 4, 4, 0, 2, 5, 5, 5, 5])


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, 0.6), (0.0, 0.5)])
def test_focal_loss(logits_and_targets, gamma, alpha):
    logits, targets = logits_and_targets
    output = sigmoid_focal_loss(logits, targets, gamma, alpha, None, "none")
    expected = focal_loss_reference(logits.numpy(), targets.numpy(), gamma, alpha)
    np.testing.assert_allclose(output, expected, rtol=1e-9)


@pytest.mark.parametrize(("gamma", "alpha"), [(2.0, 0.25), (1.5, 0.6), (0.0, 0.5)])
def test_focal_loss_gradient(logits_and_targets, gamma, alpha):
    logits, targets = logits_and_targets
    assert torch.autograd.gradcheck(
        lambda x: sigmoid_focal_loss(x, targets, gamma, alpha, None, "sum"), logits.requires_grad_()
    )


def test_focal_loss_equals_mmdet(logits_and_targets):
    logits, targets = logits_and_targets
    one_hot = torch.nn.functional.one_hot(targets, 6)[:, :5]
    torch.testing.assert_close(
        sigmoid_focal_loss(logits, targets, 2.0, 0.25, None, "none"),
        py_sigmoid_focal_loss(logits, one_hot, gamma=2.0, alpha=0.25, reduction="none"),
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_focal_loss_of_large_logits_is_finite(dtype):
    logits = torch.tensor([[-200.0, 200.0], [200.0, -200.0]], dtype=dtype, requires_grad=True)
    output = sigmoid_focal_loss(logits, torch.tensor([0, 2]), 2.0, 0.25, None, "none")
    torch.testing.assert_close(output.float(), torch.tensor([[50.0, 150.0], [150.0, 0.0]]))
    output.sum().backward()
    torch.testing.assert_close(logits.grad.float(), torch.tensor([[-0.25, 0.75], [0.75, 0.0]]))


def test_focal_loss_without_logits():
    logits = torch.zeros(0, 5, requires_grad=True)
    output = sigmoid_focal_loss(logits, torch.zeros(0, dtype=torch.long), 2.0, 0.25, None, "none")
    output.sum().backward()
    assert output.shape == logits.grad.shape == (0, 5)


def test_focal_loss_has_no_class_weights(logits_and_targets):
    logits, targets = logits_and_targets
    with pytest.raises(NotImplementedError, match=r"no class weights.*\n.*MMCV_WITH_OPS=1"):
        sigmoid_focal_loss(logits, targets, 2.0, 0.25, torch.ones(5).double(), "none")


# --- everything else


def test_other_operators_name_the_remedy():
    layer = ModulatedDeformConv2d(2, 2, 3)
    with pytest.raises(NotImplementedError, match=r"'modulated_deform_conv_forward'.*MMCV=full"):
        layer(torch.ones(1, 2, 8, 8), torch.zeros(1, 18, 6, 6), torch.ones(1, 9, 6, 6))


def test_private_names_are_no_operators():
    assert not hasattr(torchvision_ops, "__path__")
    assert not hasattr(torchvision_ops, "_nms")


def test_environment_report_has_no_compiler(monkeypatch):
    monkeypatch.setattr(importlib.import_module("mmcv.ops.info"), "ext_module", torchvision_ops)
    assert collect_env()["MMCV Compiler"] == "n/a"


@pytest.mark.parametrize("has_extension", [True, False])
def test_compiled_extension_comes_first(tmp_path, has_extension):
    package = tmp_path / "mmcv"
    package.mkdir()
    (package / "__init__.py").touch()
    if has_extension:
        (package / "_ext.py").touch()
    code = """if True:
        import sys
        from importlib.util import find_spec, module_from_spec, spec_from_file_location
        spec = spec_from_file_location("mmcv_ops", sys.argv[1])
        mmcv_ops = module_from_spec(spec)
        spec.loader.exec_module(mmcv_ops)
        before = len(sys.meta_path)
        mmcv_ops.provide_mmcv_ops()
        mmcv_ops.provide_mmcv_ops()
        assert len(sys.meta_path) == before + 1
        assert "torch" not in sys.modules
        print(find_spec("mmcv._ext").origin)
    """
    utils = ROOT / "pat_mmdet/utils"
    done = subprocess.run(
        [sys.executable, "-c", code, utils / "mmcv_ops.py"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    expected = package / "_ext.py" if has_extension else utils / "torchvision_ops.py"
    assert done.stdout.strip() == str(expected)


# --- whole detectors

DETECTORS = {
    "FasterRCNN": "faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py",
    "MaskRCNN": "mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py",
    "CascadeRCNN": "cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py",
    "RetinaNet": "retinanet/retinanet_r50_fpn_1x_coco.py",
    "ATSS": "atss/atss_r50_fpn_1x_coco.py",
    "GFL": "gfl/gfl_r50_fpn_1x_coco.py",
    "FCOS": "fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py",
}


def build_detector(name):
    init_default_scope("mmdet")
    cfg = Config.fromfile(
        Path(mmdet.__file__).with_name(".mim") / "configs" / DETECTORS[name]
    ).model
    cfg.backbone.update(depth=18, init_cfg=None)
    cfg.neck.in_channels = [64, 128, 256, 512]
    if "roi_head" in cfg:
        heads = cfg.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.fc_out_channels = 64
    cfg.test_cfg.get("rcnn", cfg.test_cfg).score_thr = 0.0  # so that there is something to predict
    torch.manual_seed(0)
    detector = MODELS.build(cfg)
    detector.init_weights()
    return detector


def train_step(detector, data):
    torch.manual_seed(0)
    detector.train()
    detector.zero_grad()
    total, losses = detector.parse_losses(detector(**data, mode="loss"))
    total.backward()
    return losses, {n: p.grad for n, p in detector.named_parameters() if p.requires_grad}


def make_batch(detector, with_mask):
    torch.manual_seed(0)
    data = demo_mm_inputs(2, [[3, 128, 96]] * 2, num_classes=80, with_mask=with_mask)
    return detector.data_preprocessor(data, True)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("MaskRCNN", "RetinaNet") else pytest.mark.full)
        for name in DETECTORS
    ],
)
def test_detector_trains_and_predicts(name):
    detector = build_detector(name)
    data = make_batch(detector, with_mask=name == "MaskRCNN")
    losses, gradients = train_step(detector, data)
    assert all(torch.isfinite(loss) for loss in losses.values())
    for parameter, gradient in gradients.items():
        assert gradient is not None, parameter
        assert torch.isfinite(gradient).all(), parameter
    predictions = detector.eval()(**data, mode="predict")
    assert len(predictions) == 2
    for sample in predictions:
        assert len(sample.pred_instances) > 0
        assert torch.isfinite(sample.pred_instances.bboxes).all()


# --- beside compiled mmcv


@needs_compiled_mmcv
@pytest.mark.parametrize("aligned", [False, True])
def test_roi_align_equals_compiled_mmcv(monkeypatch, maps_and_rois, aligned):
    maps, rois = (torch.from_numpy(x).float() for x in maps_and_rois)
    results = []
    for operators in (torchvision_ops, compiled_ops):
        use_operators(monkeypatch, operators)
        maps = maps.detach().requires_grad_()
        output = roi_align(maps, rois, 7, 0.25, 0, "avg", aligned)
        output.square().sum().backward()
        results.append((output, maps.grad))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


@needs_compiled_mmcv
def test_nms_equals_compiled_mmcv(monkeypatch):
    boxes = torch.from_numpy(random_boxes(2000, 200)).float()
    scores = torch.rand(2000, generator=torch.Generator().manual_seed(0))
    results = []
    for operators in (torchvision_ops, compiled_ops):
        use_operators(monkeypatch, operators)
        results.append(nms(boxes, scores, 0.5)[1].tolist())
    assert results[0] == results[1]


@needs_compiled_mmcv
@pytest.mark.parametrize("name", DETECTORS)
def test_detector_equals_compiled_mmcv(monkeypatch, name):
    detector = build_detector(name)
    data = make_batch(detector, with_mask=name == "MaskRCNN")
    results = []
    for operators in (torchvision_ops, compiled_ops):
        # NMS is torchvision's in both: mmcv's changes the order of boxes with equal scores.
        use_operators(monkeypatch, operators, names=("roi_align", "focal_loss"))
        state = {key: value.clone() for key, value in detector.state_dict().items()}
        losses, gradients = train_step(detector, data)
        detector.load_state_dict(state)
        with torch.no_grad():
            predictions = detector.eval()(**data, mode="predict")
        results.append((losses, gradients, [p.pred_instances.to_dict() for p in predictions]))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
