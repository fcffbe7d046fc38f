"""Networks in ONNX against those in PyTorch."""

import copy
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec

import cv2
import numpy as np
import onnx
import pytest
import torch
from helpers import classifiers, one_stage
from helpers.deploy import build, picture
from helpers.detectors import pair_config
from helpers.tools import ROOT, load_tool
from mmdet.apis import DetInferencer

from pat_mmdet.cli import export, infer
from pat_mmdet.deploy import OnnxClassifier, OnnxDetector
from pat_mmdet.deploy.comparison import compare
from pat_mmdet.deploy.graphs import build_graph
from pat_mmdet.deploy.onnx_export import export_onnx, find_image
from pat_mmdet.utils import load_config
from pat_mmdet.utils.config import is_rgb

# Three levels are enough, and their export takes half the time of five.
LEVELS = """
    neck=dict(end_level=2, num_outs=3),
    rpn_head=dict(anchor_generator=dict(strides=[4, 8, 16])),
    roi_head=dict(bbox_roi_extractor=dict(featmap_strides=[4, 8, 16])),
"""
CONFIGS = {
    "pair.py": ("pat/swin_p-res18_digits.py", f"model = dict(student=dict({LEVELS}))"),
    "alone.py": ("students/faster-rcnn_r18_fpn_digits.py", f"model = dict({LEVELS})"),
}
WITHOUT_TORCH = """
import sys
from importlib.machinery import PathFinder

MISSING = ("torch", "mmengine", "mmcv", "mmdet", "mmpretrain", "timm", "onnx", "PIL", "scipy")

class Finder:
    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in MISSING else PathFinder.find_spec(name, path, target)

sys.meta_path = [Finder() if finder is PathFinder else finder for finder in sys.meta_path]

import numpy as np
from {package} import OnnxDetector

np.savez(sys.argv[3], *OnnxDetector(sys.argv[1])(sys.argv[2]))
"""


def run_export(monkeypatch, *arguments):
    """Runs the command in this process."""
    monkeypatch.setattr(sys, "argv", ["export", *map(str, arguments)])
    export.main()


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """The files of an exported student, whose training was interrupted."""
    folder = tmp_path_factory.mktemp("student")
    for name, (base, text) in CONFIGS.items():
        (folder / name).write_text(f"_base_ = {str(ROOT / 'configs' / base)!r}\n{text}\n")
    model = build(load_config(folder / "pair.py").model.student)
    torch.save(
        dict(
            meta=dict(iter=3, dataset_meta=dict(classes=tuple("0123456789"))),
            state_dict={**model.state_dict(), "distill.raa.weight": torch.ones(2)},
            message_hub=dict(log_scalars={}, runtime_info={"iter": 3}),
            optimizer=dict(state={}, param_groups=[]),
        ),
        folder / "iter_3.pth",
    )
    cv2.imwrite(str(folder / "photo.png"), picture(150, 90))
    with pytest.MonkeyPatch.context() as monkeypatch:
        for name in ("student.pth", "student.onnx"):
            run_export(monkeypatch, folder / "pair.py", folder / "iter_3.pth", folder / name)
    return folder


def test_file_describes_itself(student):
    proto = onnx.load(student / "student.onnx")
    assert {node.domain for node in proto.graph.node} == {""} and not proto.functions
    names = {node.op_type for node in proto.graph.node}
    assert {"NonMaxSuppression", "RoiAlign", "TopK", "Pad"} <= names
    assert str(ROOT) not in str(proto) and "site-packages" not in str(proto)
    metadata = {item.key: item.value for item in proto.metadata_props}
    assert metadata.keys() == {"task", "classes", "score_thr", "test_pipeline"}
    assert metadata["score_thr"] == "0.05"
    detector = OnnxDetector(student / "student.onnx")
    assert detector.classes == list("0123456789")
    assert detector.pipeline == [
        dict(type="Resize", scale=[128, 128], keep_ratio=True, interpolation="bilinear",
             backend="cv2")
    ]  # fmt: skip


def test_one_file_student_and_onnx_predict_the_same(student):
    inferencer = DetInferencer(weights=str(student / "student.pth"), show_progress=False)
    detector = OnnxDetector(str(student / "student.onnx"), num_threads=1)
    for seed, (height, width) in enumerate([(150, 90), (61, 200), (128, 128)]):
        image = picture(height, width, seed)
        expected = inferencer(image, no_save_vis=True)["predictions"][0]
        boxes, scores, labels = detector(image)
        assert len(set(expected["labels"])) > 1
        assert labels.tolist() == expected["labels"]
        np.testing.assert_allclose(boxes, expected["bboxes"], atol=1e-3)
        np.testing.assert_allclose(scores, expected["scores"], atol=1e-5)
    assert list(inferencer.model.dataset_meta["classes"]) == list("0123456789")
    assert "pat_mmdet" not in str(inferencer.cfg)


@pytest.mark.parametrize("package", ["pat_mmdet.deploy", "copied"])
def test_runtime_needs_no_torch(package, student, tmp_path):
    (tmp_path / "copied").mkdir()
    for name in ("__init__.py", "runtime.py", "preprocessing.py"):
        shutil.copy(ROOT / "pat_mmdet/deploy" / name, tmp_path / "copied")
    image = student / "photo.png"
    code = WITHOUT_TORCH.replace("{package}", package)
    arguments = [student / "student.onnx", image, tmp_path / "found"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, env=environment)
    with np.load(tmp_path / "found.npz") as found:
        for array, expected in zip(found.values(), OnnxDetector(student / "student.onnx")(image)):
            np.testing.assert_allclose(array, expected, atol=1e-4)


def test_openvino_reads_the_file(student):
    openvino = pytest.importorskip("openvino")
    # By default, a CPU that has half precision computes in it.
    exact = {"INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.compile_model(student / "student.onnx", "CPU", exact)
    detector = OnnxDetector(student / "student.onnx")
    for size in ((128, 77), (96, 128)):
        pixels = picture(*size).transpose(2, 0, 1)[None].astype(np.float32)
        expected = detector.infer(pixels)
        for array, want in zip(network(pixels).values(), expected):
            np.testing.assert_allclose(array, want, atol=1e-3)


def test_other_predictions_are_not_written(student, tmp_path, monkeypatch, capsys):
    content = (student / "student.onnx").read_bytes()
    monkeypatch.setattr("pat_mmdet.deploy.onnx_export.export_onnx", lambda *args: content)
    checkpoint = torch.load(student / "iter_3.pth")
    checkpoint["state_dict"]["roi_head.bbox_head.fc_reg.bias"] += 1e-3
    torch.save(checkpoint, tmp_path / "other.pth")
    with pytest.raises(SystemExit, match=r"student.onnx is not written"):
        run_export(
            monkeypatch, student / "pair.py", tmp_path / "other.pth", tmp_path / "student.onnx"
        )
    assert "boxes" in capsys.readouterr().out
    assert not (tmp_path / "student.onnx").exists()


def test_wrong_files_are_named(student, tmp_path):
    proto = onnx.load(student / "student.onnx")
    with pytest.raises(ValueError, match="is for detection, not for classification"):
        OnnxClassifier(student / "student.onnx")
    del proto.metadata_props[:]
    with pytest.raises(ValueError, match="not written by 'pat-mmdet export'"):
        OnnxDetector(proto.SerializeToString())
    with pytest.raises(ValueError, match="the content cannot be loaded by onnxruntime"):
        OnnxDetector(b"no network")
    with pytest.raises(FileNotFoundError, match=r"none.onnx' does not exist"):
        OnnxDetector(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match=r"not \(4, 4\) of float64"):
        OnnxDetector(student / "student.onnx")(np.zeros((4, 4)))


def test_latency_and_accuracy_of_all_runtimes(student, digits, monkeypatch):
    content = (student / "student.onnx").read_bytes()
    monkeypatch.setattr("pat_mmdet.deploy.onnx_export.export_onnx", lambda *args: content)
    tool = load_tool("analysis_tools/benchmark_latency.py")
    arguments = f"x {student}/alone.py {student}/iter_3.pth --repeats 3 --warmup 0 --evaluate"
    options = ["--cfg-options", f"data_root={digits}/"]
    monkeypatch.setattr(sys, "argv", [*arguments.split(), *options])
    rows = tool.measure(tool.parse_args())
    runtimes = ["PyTorch", "onnxruntime", "OpenVINO"][: 3 if find_spec("openvino") else 2]
    assert [(row["network"], row["runtime"]) for row in rows] == [("student", x) for x in runtimes]
    for row in rows:
        assert 0 < row["least"] <= row["milliseconds"] <= row["most"]
        assert row["mAP"] == rows[0]["mAP"]
    assert rows[0]["over_student"] == 1 and rows[1]["over_student"] > 0


def test_infer_runs_the_file(student, tmp_path, monkeypatch):
    arguments = ["infer", student / "student.onnx", student / "photo.png", "--out", tmp_path]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    infer.main()
    records = json.loads((tmp_path / "predictions.json").read_text())
    scores = OnnxDetector(student / "student.onnx")(student / "photo.png").scores
    np.testing.assert_allclose([record["score"] for record in records], scores, atol=1e-5)


def check(model, cfg, count, tmp_path, num_classes=10):
    """Exports a network and compares it on a picture."""
    path = tmp_path / "picture.png"
    cv2.imwrite(str(path), picture(200, 300))
    content = export_onnx(model, cfg, ["class"] * num_classes)
    for difference in compare(content, model, cfg, path):
        assert difference.is_small and difference.num_predictions >= count, difference


@pytest.mark.parametrize(
    "kind",
    ["ATSS", *(pytest.param(x, marks=pytest.mark.full) for x in ("FCOS", "GFL", "RetinaNet"))],
)
def test_one_stage_detectors(kind, tmp_path):
    cfg = one_stage.pair(kind, "FasterRCNN")
    cfg.model.student.neck.num_outs = 3  # as above
    head = cfg.model.student.bbox_head
    getattr(head, "anchor_generator", head).strides = one_stage.STRIDES[:3]
    check(build(cfg.model.student), cfg, 10, tmp_path)


@pytest.mark.full
@pytest.mark.parametrize("part", ["student", "teacher"])
def test_class_specific_boxes_and_swin(part, tmp_path):
    cfg = pair_config()
    model = cfg.model[part]
    model.roi_head.bbox_head.reg_class_agnostic = part == "teacher"
    check(build(model), cfg, 10, tmp_path)


QUICK = ("resnet18",)
NAMES = [*classifiers.TIMM, *classifiers.MMPRETRAIN]


@pytest.mark.parametrize(
    "name", [x if x in QUICK else pytest.param(x, marks=pytest.mark.full) for x in NAMES]
)
def test_classifiers(name, tmp_path):
    cfg = pair_config()
    cfg.test_dataloader.dataset.pipeline = [
        dict(type="LoadImageFromFile"),
        dict(type="ResizeEdge", scale=72, backend="pillow", interpolation="bicubic"),
        dict(type="CenterCrop", crop_size=classifiers.SIZE),
        dict(type="PackInputs"),
    ]
    model = classifiers.build(classifiers.config(name)).eval()
    check(model, cfg, 1, tmp_path, classifiers.CLASSES)


def in_memory(cfg):
    """Remove the loading from a test pipeline, as for CIFAR-100."""
    resize = dict(type="Resize", scale=classifiers.SIZE)
    cfg.test_dataloader.dataset.pipeline = [resize, dict(type="PackInputs")]
    return cfg


@pytest.mark.full
def test_export_for_images_in_memory(tmp_path):
    model = classifiers.build(classifiers.config("resnet18")).eval()
    check(model, in_memory(pair_config()), 1, tmp_path, classifiers.CLASSES)


def test_images_in_memory_are_rgb():
    cfg = pair_config()
    assert is_rgb(in_memory(copy.deepcopy(cfg))) and not is_rgb(cfg)
    model = classifiers.build(classifiers.config("resnet18")).eval()
    graph = build_graph(model, is_rgb=True)
    image = torch.rand(1, 3, classifiers.SIZE, classifiers.SIZE) * 255
    expected = model.data_preprocessor(dict(inputs=image.flip(1)))["inputs"]
    assert torch.equal(graph.preprocess(image), expected)


def test_number_of_classes_is_checked():
    cfg = pair_config()
    with pytest.raises(ValueError, match="has 10 classes, but 2 are named"):
        export_onnx(build(cfg.model.student), cfg, ["cat", "dog"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(rcnn=dict(nms=dict(type="soft_nms"))), "test_cfg.rcnn.nms={'type': 'soft_nms'"),
        (dict(rpn=dict(nms_pre=-1)), "test_cfg.rpn.nms_pre must be"),
    ],
)
def test_other_test_settings_are_refused(change, message):
    cfg = pair_config(model__student__test_cfg=change)
    with pytest.raises(ValueError) as error:
        export_onnx(build(cfg.model.student), cfg, [])
    assert message in str(error.value)


def test_image_to_compare_on(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where the config's data are not
    cfg = pair_config()
    assert find_image(cfg).endswith("grace_hopper.jpg")
    cfg.test_dataloader.dataset.data_root = str(digits)
    assert find_image(cfg).startswith(str(digits / "val"))
