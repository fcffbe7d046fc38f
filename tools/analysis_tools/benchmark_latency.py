"""Time predictions of a student beside its teacher, in PyTorch, onnxruntime and OpenVINO.

A prediction goes from a decoded image to boxes or probabilities, with resizing and NMS. All
networks and runtimes run in turn in one process, so that their ratios hold on a noisy machine.
PyTorch is what MMDetection or mmpretrain predict with; the others run the exported file, which is
compared with PyTorch before. OpenVINO takes part where it is installed.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

from pat_mmdet.cli.arguments import add_cfg_options
from pat_mmdet.cli.test import is_classification
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.io import write_atomic

if TYPE_CHECKING:
    import numpy as np
    from mmengine.config import Config
    from mmengine.structures import BaseDataElement
    from torch import nn

    from pat_mmdet.deploy import OnnxClassifier, OnnxDetector


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="path of the config of a pair, or of a student alone")
    parser.add_argument(
        "checkpoint", help="checkpoint of the student; the config has the teacher's"
    )
    parser.add_argument("--image", help="image to predict; by default one of the test images")
    parser.add_argument(
        "--evaluate", action="store_true", help="evaluate all of them on the config's test set"
    )
    parser.add_argument("--threads", type=int, default=1, help="threads of a prediction")
    parser.add_argument("--repeats", type=int, default=20, help="predictions that are timed")
    parser.add_argument("--warmup", type=int, default=3, help="predictions before those that count")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file too")
    add_cfg_options(parser)
    args = parser.parse_args()
    if min(args.threads, args.repeats) < 1 or args.warmup < 0:
        parser.error("--threads and --repeats must be at least 1, --warmup at least 0")
    return args


class Predictor(NamedTuple):
    """A network in a runtime.

    Attributes:
        network (str): ``'student'`` or ``'teacher'``.
        runtime (str): What runs it.
        size (int): Bytes of its weights or of its file.
        predict (Callable[[dict], Any]): Predicts from the results of the pipeline's first step.
    """

    network: str
    runtime: str
    size: int
    predict: Callable[[dict], Any]


def load_networks(args: argparse.Namespace) -> tuple[Config, list[str], dict[str, nn.Module]]:
    """Build the networks with their weights.

    Returns:
        tuple[Config, list[str], dict[str, nn.Module]]: Config, names of the classes and networks.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a checkpoint does not fit, or the teacher has none.
    """
    from mmengine.registry import MODELS

    from pat_mmdet.cli.export import load_student
    from pat_mmdet.utils import is_distiller, load_weights, teacher_model

    student = load_student(args.config, args.checkpoint, args.cfg_options)
    networks = {"student": student.model.eval()}
    if is_distiller(student.cfg):
        checkpoint = student.cfg.model.teacher_checkpoint
        teacher = MODELS.build(teacher_model(student.cfg.model.teacher, checkpoint))
        if checkpoint is not None:
            load_weights(teacher, checkpoint)
        networks["teacher"] = teacher.eval()
    return student.cfg, list(student.dataset_meta.get("classes", ())), networks


def make_predictors(
    name: str, model: nn.Module, classes: list[str], cfg: Config, image: str, threads: int
) -> Iterator[Predictor]:
    """Put a network into every runtime.

    Args:
        name (str): Name of the network.
        model (nn.Module): The network, in eval mode.
        classes (list[str]): Names of its classes.
        cfg (Config): Config with the test pipeline.
        image (str): Path of an image to compare the predictions on.
        threads (int): Threads of a prediction.

    Yields:
        Predictor: The network in PyTorch, and exported if it can be.

    Raises:
        ValueError: If the exported network predicts something else.
    """
    import torch
    from mmengine.dataset import pseudo_collate

    from pat_mmdet.deploy import OnnxClassifier, OnnxDetector
    from pat_mmdet.deploy.comparison import SplitPipeline, compare
    from pat_mmdet.deploy.onnx_export import export_onnx

    pipeline = SplitPipeline(cfg)

    def predict(results: dict) -> Any:
        with torch.no_grad():
            return model.test_step(pseudo_collate([pipeline.prepare(results)]))[0]

    def run(exported: OnnxDetector | OnnxClassifier) -> Callable[[dict], Any]:
        return lambda results: exported(pipeline.to_pixels(results))

    size = sum(item.nbytes for item in model.state_dict().values())
    yield Predictor(name, "PyTorch", size, predict)
    try:
        content = export_onnx(model, cfg, classes)
    except ValueError as error:
        print(f"{name}: {error}")
        return
    for difference in compare(content, model, cfg, image):
        print(f"{name}, ONNX and PyTorch differ on {difference}")
        if not difference.is_small:
            raise ValueError(f"the {name} in ONNX does not predict what it predicts in PyTorch")
    kind = OnnxClassifier if is_classification(cfg) else OnnxDetector
    exported = kind(content, num_threads=threads, providers=["CPUExecutionProvider"])
    yield Predictor(name, "onnxruntime", len(content), run(exported))
    if find_spec("openvino") is None:
        return
    import openvino

    network = openvino.compile_model(
        openvino.Core().read_model(content),
        "CPU",
        # A CPU with half precision would compute in it by default.
        {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"},
    )

    class OpenVino(kind):  # type: ignore[misc, valid-type]
        def infer(self, pixels: np.ndarray) -> list[np.ndarray]:
            return list(network(pixels).values())

    yield Predictor(name, "OpenVINO", len(content), run(OpenVino(content)))


def time_predictions(
    predictors: list[Predictor], cfg: Config, image: str, repeats: int, warmup: int
) -> list[list[float]]:
    """Run all predictors in turn on an image; return the seconds of each run of each."""
    from pat_mmdet.deploy.comparison import SplitPipeline
    from pat_mmdet.deploy.preprocessing import read_image

    results = SplitPipeline(cfg).from_pixels(read_image(image))
    times: list[list[float]] = [[] for _ in predictors]
    for repeat in range(warmup + repeats):
        for predictor, spent in zip(predictors, times):
            start = time.perf_counter()
            predictor.predict(dict(results))
            if repeat >= warmup:
                spent.append(time.perf_counter() - start)
    return times


def evaluate(predictor: Predictor, cfg: Config) -> dict[str, float]:
    """Evaluate a predictor on the test set, one image at a time.

    Args:
        predictor (Predictor): The predictor.
        cfg (Config): Config with ``test_dataloader`` and ``test_evaluator``.

    Returns:
        dict[str, float]: Metrics.
    """
    from mmengine.dataset import pseudo_collate
    from mmengine.evaluator import Evaluator
    from mmengine.registry import DATASETS

    from pat_mmdet.deploy.comparison import SplitPipeline

    dataset = DATASETS.build(cfg.test_dataloader.dataset)
    pipeline = SplitPipeline(cfg)
    evaluator = Evaluator(cfg.test_evaluator)
    evaluator.dataset_meta = dataset.metainfo
    for index in range(len(dataset)):
        results = pipeline.load(dataset.get_data_info(index))
        found = predictor.predict(dict(results))
        data = pipeline.prepare(results)
        if predictor.runtime != "PyTorch":
            found = to_sample(found, data["data_samples"])
        evaluator.process([found], pseudo_collate([data]))
    with redirect_stdout(io.StringIO()):  # pycocotools has a table of its own
        return evaluator.evaluate(len(dataset))


def to_sample(found: Any, sample: BaseDataElement) -> BaseDataElement:
    """Put predictions of the runtime into a data sample, as a network does."""
    import torch
    from mmengine.structures import InstanceData

    if not isinstance(found, tuple):
        scores = torch.from_numpy(found)
        return sample.set_pred_score(scores).set_pred_label(scores.argmax(0, keepdim=True))
    boxes, scores, labels = map(torch.from_numpy, found)
    sample.pred_instances = InstanceData(bboxes=boxes, scores=scores, labels=labels)
    return sample


def measure(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Time all predictors, and evaluate them if asked; return the rows of the table."""
    import torch

    from pat_mmdet.deploy.onnx_export import find_image
    from pat_mmdet.utils.tables import METRICS

    torch.set_num_threads(args.threads)
    cfg, classes, networks = load_networks(args)
    image = args.image or find_image(cfg)
    predictors = [
        predictor
        for name, model in networks.items()
        for predictor in make_predictors(name, model, classes, cfg, image, args.threads)
    ]
    times = time_predictions(predictors, cfg, image, args.repeats, args.warmup)
    in_torch = {p.network: spent for p, spent in zip(predictors, times) if p.runtime == "PyTorch"}
    metric = METRICS["classification" if is_classification(cfg) else "detection"][0]
    rows = []
    for predictor, spent in zip(predictors, times):
        # Of neighbours in time, which the noise of the machine hits alike.
        speedup = {
            f"over_{name}": median(slow / fast for slow, fast in zip(reference, spent))
            for name, reference in in_torch.items()
        }
        rows.append(
            dict(
                network=predictor.network,
                runtime=predictor.runtime,
                milliseconds=1e3 * median(spent),
                least=1e3 * min(spent),
                most=1e3 * max(spent),
                mebibytes=predictor.size / 2**20,
                **speedup,
            )
        )
        if args.evaluate:
            rows[-1][metric.name] = evaluate(predictor, cfg)[metric.key] * metric.scale
    return rows


def show(rows: list[dict[str, Any]]) -> None:
    """Print the figures as a table."""
    headings = dict(
        network="network", runtime="runtime", milliseconds="median ms", least="min", most="max",
        mebibytes="MiB", over_student="x student", over_teacher="x teacher",
    )  # fmt: skip
    columns = {key: headings.get(key, key) for key in rows[0]}
    print("  ".join(f"{heading:>11}" for heading in columns.values()))
    for row in rows:
        cells = (f"{x:.2f}" if isinstance(x, float) else x for x in row.values())
        print("  ".join(f"{cell:>11}" for cell in cells))
    print("'x student' and 'x teacher': how many times as fast as that network in PyTorch")


def main() -> None:
    """Measure as the command line says."""
    args = parse_args()
    # The table has the standard output for itself; what libraries say goes elsewhere.
    with clear_errors(args.traceback), redirect_stdout(sys.stderr):
        rows = measure(args)
    show(rows)
    if args.json:
        settings = {name: value for name, value in vars(args).items() if name != "json"}
        write_atomic(
            Path(args.json), json.dumps(dict(rows=rows, settings=settings), indent=2) + "\n"
        )


if __name__ == "__main__":
    main()
