"""Train a teacher, a student alone and the student with PAT (``pat_plus``) on generated data.

Every part that is done already is skipped, and one that was interrupted is resumed, so the command
can be given again at any time. Ends with a table and work_dirs/demo/report.png.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from mmengine.config import Config

from pat_mmdet.cli.arguments import add_traceback
from pat_mmdet.utils import RunDir, load_config, student_model
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.paths import CONFIGS, TOOLS


@dataclass
class Run:
    """One training of the demo.

    Attributes:
        title (str): Name in the report.
        config (Path): Config of the training.
        options (dict[str, str]): Overridden settings of the config.
        training (RunDir): Its work dir and length.
        method (str, optional): Name of a method, in place of the config's.
    """

    title: str
    config: Path
    options: dict[str, str]
    training: RunDir
    method: str | None = None

    def train(self) -> None:
        """Train, or resume what an earlier call began."""
        if self.training.is_finished():
            print(f"[demo] {self.title}: done already", flush=True)
            return
        print(f"[demo] {self.title}: training, logs in {self.training.folder}", flush=True)
        run_tool(
            "train.py", self.config, "--work-dir", self.training.folder, "--resume",
            *(["--method", self.method] if self.method else []),
            "--cfg-options", *(f"{key}={value}" for key, value in self.options.items()),
        )  # fmt: skip


def run_tool(name: str, *args: object) -> None:
    """Run one of the tools in this process's environment; its output stays visible."""
    command = [sys.executable, "-u", TOOLS / name, *args]
    code = subprocess.run([str(part) for part in command], check=False).returncode
    if code:
        sys.exit(f"[demo] {name} ended with exit code {code}; give the command again to go on")


def plan(folder: Path, seed: int, iters: int, teacher_iters: int) -> list[Run]:
    """List the trainings: the teacher, the student alone, and PAT with the same budget."""
    data = {"data_root": f"{folder / 'digits'}/", "randomness.seed": str(seed)}

    def run(
        title: str, config: str, name: str, steps: int, method: str | None = None, **options: str
    ) -> Run:
        warm_up = str(max(min(steps // 6, 80), 1))
        scheduled = {
            "train_cfg.max_iters": str(steps),
            "param_scheduler.0.end": warm_up,
            "param_scheduler.1.begin": warm_up,
            "param_scheduler.1.end": str(steps),
        }
        training = RunDir(folder / name, steps)
        return Run(title, CONFIGS / config, {**data, **scheduled, **options}, training, method)

    teacher = run(
        "teacher (Swin)", "teachers/faster-rcnn_swin-p_fpn_digits.py", "teacher", teacher_iters
    )
    return [
        teacher,
        run("student alone", "students/faster-rcnn_r18_fpn_digits.py", "student", iters),
        run(
            "student with PAT",
            "pat/swin_p-res18_digits.py",
            "pat_plus",
            iters,
            method="pat_plus",
            **{"model.teacher_checkpoint": str(teacher.training.checkpoint)},
        ),
    ]


def table(runs: list[Run]) -> str:
    """Format the results as Markdown."""
    rows = [
        "| network | iterations | training time | mAP | AP50 | AP75 |",
        "|---|---|---|---|---|---|",
    ]
    for run in runs:
        scores = run.training.metrics()
        values = " | ".join(
            f"{scores[f'coco/bbox_{key}']:.3f}" for key in ("mAP", "mAP_50", "mAP_75")
        )
        training = run.training
        rows.append(
            f"| {run.title} | {training.steps} | {training.train_time():.0f} s | {values} |"
        )
    return "\n".join(rows)


def load_network(run: Run) -> object:
    """Build the network of a training for inference, without its teacher."""
    from mmdet.apis import init_detector

    cfg = load_config(str(run.config), {"data_root": run.options["data_root"]})
    cfg.model = student_model(cfg)
    return init_detector(cfg, str(run.training.checkpoint), device="cpu")


def draw_report(runs: list[Run], path: Path, threshold: float = 0.3) -> None:
    """Draw losses, mAP and boxes on a few test images."""
    import matplotlib
    import matplotlib.pyplot as plt
    from matplotlib.patches import Rectangle
    from mmdet.apis import inference_detector

    matplotlib.use("Agg")
    colours = dict(zip((run.title for run in runs), ("tab:blue", "tab:gray", "tab:red")))
    figure = plt.figure(figsize=(15, 12), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=[1, 2])  # type: ignore[misc]
    loss_axis, map_axis = top.subplots(1, 2)
    for run in runs:
        logged = run.training.scalars()
        for axis, key in ((loss_axis, "loss_cls"), (map_axis, "coco/bbox_mAP")):
            points = [(entry["step"], entry[key]) for entry in logged if key in entry]
            axis.plot(*zip(*points), label=run.title, color=colours[run.title], marker=".")
    loss_axis.set(xlabel="iteration", ylabel="classification loss of the RoI head")
    map_axis.set(xlabel="iteration", ylabel="COCO mAP on the test images", ylim=(0, None))
    loss_axis.legend()
    map_axis.legend()

    cfg: Config = load_config(str(runs[0].config))
    images = sorted(Path(runs[0].options["data_root"], "val").glob("*.png"))[:4]
    axes = bottom.subplots(len(runs), len(images))
    for run, row in zip(runs, axes):
        network = load_network(run)
        for axis, image in zip(row, images):
            axis.imshow(plt.imread(image))
            axis.set_axis_off()
            found = inference_detector(network, str(image)).pred_instances
            for box, label, score in zip(found.bboxes, found.labels, found.scores):
                if score >= threshold:
                    x, y, right, below = box.tolist()
                    axis.add_patch(
                        Rectangle(
                            (x, y), right - x, below - y, fill=False, color=colours[run.title]
                        )
                    )
                    axis.text(x, y, f"{cfg.classes[label]} {score:.2f}", fontsize=8, va="bottom",
                              color="white", backgroundcolor=colours[run.title])  # fmt: skip
        row[0].set_title(run.title, loc="left", color=colours[run.title])
    figure.savefig(path, dpi=80)


def claim(folder: Path, settings: dict[str, int]) -> None:
    """Record the settings of a demo in its folder.

    Raises:
        ValueError: If the folder holds a demo with other settings, which would be mixed up.
    """
    note, text = folder / "demo.json", json.dumps(settings)
    if note.is_file() and note.read_text() != text:
        raise ValueError(
            f"{folder} holds a demo with other settings ({note.read_text()}); give another "
            "--work-dir, or remove that folder"
        )
    folder.mkdir(parents=True, exist_ok=True)
    note.write_text(text)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work-dir", default="work_dirs/demo", help="folder for everything")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--iters", type=int, default=300, help="iterations of each student")
    parser.add_argument("--teacher-iters", type=int, default=900)
    parser.add_argument("--images", type=int, default=3000, help="training images")
    parser.add_argument("--val-images", type=int, default=200, help="test images")
    add_traceback(parser)
    args = parser.parse_args()
    if min(args.iters, args.teacher_iters) < 2:
        parser.error("--iters and --teacher-iters must be at least 2")
    if min(args.images, args.val_images) < 1 or args.seed < 0:
        parser.error("--images and --val-images must be at least 1, --seed at least 0")
    return args


def run_demo(args: argparse.Namespace) -> None:
    """Generate the data, train the networks and report the results."""
    start = time.time()
    folder = Path(args.work_dir)
    names = ("seed", "iters", "teacher_iters", "images", "val_images")
    claim(folder, {name: getattr(args, name) for name in names})
    # One core is left to the data loader.
    os.environ.setdefault("OMP_NUM_THREADS", str(max((os.cpu_count() or 2) - 1, 1)))
    run_tool(
        "dataset_converters/make_digits.py", folder / "digits",
        "--train", args.images, "--val", args.val_images, "--seed", args.seed,
    )  # fmt: skip
    runs = plan(folder, args.seed, args.iters, args.teacher_iters)
    for run in runs:
        run.train()
    report = table(runs)
    (folder / "report.md").write_text(report + "\n")
    draw_report(runs, folder / "report.png")
    print(f"\n{report}\n\nseed {args.seed}, {args.val_images} test images; one seed proves little.")
    print(
        f"[demo] curves and boxes: {folder / 'report.png'} ({(time.time() - start) / 60:.1f} min)"
    )


def main() -> None:
    """Run the demo as the command line says."""
    args = parse_args()
    with clear_errors(args.traceback):
        run_demo(args)


if __name__ == "__main__":
    main()
