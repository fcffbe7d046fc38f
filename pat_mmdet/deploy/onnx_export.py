"""Export of detectors and classifiers to ONNX."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.cbook
import mmcv.transforms
import onnx
import onnxscript  # noqa: F401  (what torch's exporter needs should be missed here, not there)
import torch
from mmdet.utils.misc import IMG_EXTENSIONS
from mmengine.config import Config
from mmengine.registry import TRANSFORMS
from packaging.version import Version
from torch import Tensor, nn

from pat_mmdet.deploy.graphs import (
    ClassifierGraph,
    build_graph,
    detection_cfg,
    detection_head,
)
from pat_mmdet.deploy.preprocessing import PILLOW_FILTERS
from pat_mmdet.utils.config import is_rgb

# ONNX's RoIAlign has MMDetection's pixel centres since version 16; of 18 all runtimes read.
OPSET = 18
# Height and width of the example. No level of a detector's pyramid must have a single row or column
# for it, or the exporter takes that for a constant.
_EXAMPLE_SIZE = (288, 416)
# Transforms of a test pipeline that leave the pixels as they are.
_NOT_OF_PIXELS = ("LoadAnnotations", "PackDetInputs", "PackInputs")


def export_onnx(model: nn.Module, cfg: Config, classes: list[str]) -> bytes:
    """Export a network with normalisation, padding and NMS inside.

    The graph takes ``image`` (B, 3, H, W), float32, BGR, 0 to 255. A detector takes one image of
    any size, and gives ``boxes`` (N, 4) in its pixels, ``scores`` (N,) and ``labels`` (N,). A
    classifier takes any number of images, of the size of the test pipeline if that makes them all
    alike, and gives ``probabilities`` (B, K).

    Args:
        model (nn.Module): Detector of MMDetection or classifier of mmpretrain, on the CPU in eval
            mode.
        cfg (Config): Its config, of which the test pipeline is read.
        classes (list[str]): Names of the classes.

    Returns:
        bytes: Content of an ONNX file. Its metadata have ``task``, and as JSON ``classes``,
        ``score_thr`` (detectors) and ``test_pipeline``.

    Raises:
        ValueError: If there is no ONNX form of the network, its test settings or its pipeline, the
            number of classes is not the network's, or torch is too old.
    """
    if Version(torch.__version__) < Version("2.9"):
        raise ValueError(f"torch {torch.__version__} cannot export to ONNX; install torch>=2.9")
    graph = build_graph(model, is_rgb(cfg))
    pipeline = read_pipeline(cfg)
    metadata: dict[str, Any] = dict(classes=classes, test_pipeline=pipeline)
    if isinstance(graph, ClassifierGraph):
        size = _fixed_size(pipeline)
        dynamic: tuple[str, ...] = ("batch",) if size else ("batch", "height", "width")
        outputs = ["probabilities"]
        example = torch.zeros(2, 3, *(size or _EXAMPLE_SIZE))  # one image would be a constant
        num_classes = graph(example).shape[1]
    else:
        if any(step["type"] == "CenterCrop" for step in pipeline):
            raise ValueError("a test pipeline with CenterCrop cannot be exported for a detector")
        dynamic, outputs = ("height", "width"), ["boxes", "scores", "labels"]
        example = torch.zeros(1, 3, *_EXAMPLE_SIZE)
        num_classes = detection_head(model).num_classes
        metadata["score_thr"] = float(detection_cfg(model).score_thr)
    if num_classes != len(classes):
        raise ValueError(
            f"the network has {num_classes} classes, but {len(classes)} are named; set "
            "test_dataloader.dataset.metainfo.classes"
        )
    proto = _export(graph, example, dynamic, outputs)
    task = "classification" if isinstance(graph, ClassifierGraph) else "detection"
    texts = {key: json.dumps(value) for key, value in metadata.items()}
    onnx.helper.set_model_props(proto, dict(task=task, **texts))
    onnx.checker.check_model(proto)
    return proto.SerializeToString()


def read_pipeline(cfg: Config) -> list[dict[str, Any]]:
    """Return the steps of the test pipeline that :mod:`~pat_mmdet.deploy.preprocessing` repeats.

    Args:
        cfg (Config): Config with a ``test_dataloader``.

    Returns:
        list[dict]: Transforms with all their arguments.

    Raises:
        ValueError: If the pipeline has a step that cannot be repeated.
    """
    steps = []
    for node in cfg.test_dataloader.dataset.pipeline:
        transform = TRANSFORMS.build(dict(node))
        name = type(transform).__name__
        if isinstance(transform, mmcv.transforms.LoadImageFromFile):
            how = dict(color_type="color", imdecode_backend="cv2", to_float32=False)
            if any(getattr(transform, key) != value for key, value in how.items()):
                raise ValueError(
                    f"test pipeline: {name}({_arguments(node)}) cannot be exported; only with "
                    f"{_arguments(how)} can it"
                )
        elif name == "Resize" and transform.scale is not None:
            arguments = ("scale", "keep_ratio", "interpolation", "backend")
            steps.append(_step(transform, *arguments))
        elif name == "ResizeEdge":
            steps.append(_step(transform, "scale", "edge", "interpolation", "backend"))
        elif name == "CenterCrop" and not transform.auto_pad:
            steps.append(_step(transform, "crop_size"))
        elif name not in _NOT_OF_PIXELS:
            raise ValueError(
                f"test pipeline: {name}({_arguments(node)}) cannot be exported; of the transforms "
                "that change pixels, Resize with a scale, ResizeEdge and CenterCrop can"
            )
    return steps


def _step(transform: Any, *arguments: str) -> dict[str, Any]:
    """Describe a transform."""
    step = {name: getattr(transform, name) for name in arguments}
    interpolation = step.get("interpolation")
    if step.get("backend") == "pillow" and interpolation not in PILLOW_FILTERS:
        raise ValueError(
            f"test pipeline: interpolation={interpolation!r} with backend='pillow' cannot be "
            f"exported; take one of {', '.join(PILLOW_FILTERS)}"
        )
    return dict(type=type(transform).__name__, **step)


def _arguments(node: dict) -> str:
    """Format the arguments of a transform."""
    return ", ".join(f"{key}={value!r}" for key, value in node.items() if key != "type")


def _fixed_size(pipeline: list[dict[str, Any]]) -> tuple[int, int] | None:
    """Return the (height, width) that a pipeline gives all images; None if they differ."""
    size = None
    for step in pipeline:
        if step["type"] == "CenterCrop":
            # As long as it is not larger than the image, which the resizing before it sees to.
            size = step["crop_size"][::-1]
        else:
            is_fixed = step["type"] == "Resize" and not step["keep_ratio"]
            size = step["scale"][::-1] if is_fixed else None
    return size


def _export(
    graph: nn.Module, example: Tensor, dynamic: tuple[str, ...], outputs: list[str]
) -> onnx.ModelProto:
    """Translate a module to ONNX, with some axes of its input left open."""
    axes = {
        axis: torch.export.Dim(name, min=1 if name == "batch" else 2)
        for axis, name in ((0, "batch"), (2, "height"), (3, "width"))
        if name in dynamic
    }
    # The shapes of layers may depend on the size in any way; no size is excluded because of the
    # example's.
    with torch.no_grad(), _quiet(), torch.fx.experimental._config.patch(backed_size_oblivious=True):
        program = torch.export.export(
            graph,
            (example,),
            dynamic_shapes={"image": axes},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )
        _remove_assertions(program)
        proto = torch.onnx.export(
            program,
            (),
            None,
            input_names=["image"],
            output_names=outputs,
            opset_version=OPSET,
            dynamo=True,
            optimize=True,
            verbose=False,
        ).model_proto
    # Notes of the exporter: where in whose files each node comes from, and shapes as formulas.
    for item in (*proto.graph.node, *proto.graph.input, *proto.graph.output):
        item.ClearField("metadata_props")
        item.ClearField("doc_string")
    proto.graph.ClearField("value_info")
    for axis, dim in axes.items():
        proto.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = dim.__name__
    count = "batch" if "batch" in dynamic else "detections"
    for output in proto.graph.output:
        output.type.tensor_type.shape.dim[0].dim_param = count
    return proto


def _remove_assertions(program: torch.export.ExportedProgram) -> None:
    """Remove the checks of unknown lengths, for which ONNX has no operator.

    Torch 2.11 writes bounds of 2**65 into them, which do not even fit into ONNX's integers.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and "_assert" in str(node.target):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the exporter's notes about its own progress."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)


def find_image(cfg: Config) -> str:
    """Return the path of a test image of a config, or of a portrait where there is none."""
    dataset = cfg.test_dataloader.dataset
    prefix = dataset.get("data_prefix") or ""
    folders = prefix.values() if isinstance(prefix, dict) else [prefix]
    for folder in folders:
        root = Path(dataset.get("data_root") or "", folder)
        for path in root.rglob("*") if root != Path() else ():
            if path.suffix.lower() in IMG_EXTENSIONS:
                return str(path)
    return str(matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False))
