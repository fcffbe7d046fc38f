"""Train a teacher and students on generated digits, compare them, export and time the best one.

The students are trained alone, with FitNet and with PAT (``pat_plus``): three cells of the table
``digits`` of ``reproduce``, two at a time. The other commands are shown as they run. Everything
takes 15 minutes on two cores.

Steps that are done are skipped and trainings that were interrupted go on, so the command can be
given again at any time.
"""

from __future__ import annotations

import argparse
import shlex
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

from pat_mmdet.cli import reproduce
from pat_mmdet.cli.arguments import add_traceback
from pat_mmdet.utils import write_atomic
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.tables import Table, find_table

CONFIG = "pat/swin_p-res18_digits.py"
# Names of the networks by their method in the table; the last one is exported.
NAMES = {"teacher": "teacher", "none": "student alone", "fitnet": "FitNet", "pat_plus": "pat_plus"}
PACKAGES = ("sklearn", "matplotlib", "onnx", "onnxscript", "onnxruntime")


def say(text: str) -> None:
    """Print a message."""
    print(f"[demo] {text}", flush=True)


def run_command(name: str, *args: object) -> str:
    """Run a command of ``pat-mmdet``, shown as a user would give it; return its output.

    Raises:
        SystemExit: If it fails.
    """
    words = [name, *map(str, args)]
    say(shlex.join(["pat-mmdet", *words]))
    command = [sys.executable, "-m", "pat_mmdet", *words]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{done.stdout}{done.stderr}[demo] {name} failed, see above")
    return done.stdout


def is_done(product: Path, checkpoints: list[Path]) -> bool:
    """Return True, and say so, if a file exists and was written after all checkpoints."""
    newest = max(path.stat().st_mtime for path in checkpoints)
    if product.is_file() and product.stat().st_mtime > newest:
        say("done already")
        return True
    return False


def summarize(table: Table, jobs: list[reproduce.Job], seed: int) -> str:
    """Format the results of the trainings as a Markdown table."""
    columns = [metric.name for metric in table.metrics]
    lines = [
        f"| network | {' | '.join(columns)} | length | training time |",
        "|---" * (len(columns) + 3) + "|",
    ]
    for job in jobs:
        cell = table.cells[job.record["cell"]]
        row = table.row(cell, "", {seed: (job.run, {})})
        values = [NAMES[cell.method], *(row[name] for name in columns), row["length"]]
        lines.append(f"| {' | '.join(values)} | {row['seconds']} s |")
    return "\n".join(lines)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work-dir", type=Path, default=Path("work_dirs/demo"))
    parser.add_argument("--seed", type=int, default=0, help="of the students")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], help="settings of all trainings, as of train.py"
    )
    add_traceback(parser)
    return parser.parse_args()


def train(table: Table, args: argparse.Namespace) -> list[reproduce.Job]:
    """Train the teacher and the students, as ``reproduce`` does.

    Raises:
        ValueError: If the work dir has trainings with other settings.
        SystemExit: If a training failed, or another process runs one.
    """
    words = ["--table", table.name, "--cells", *(f"*/{method}" for method in NAMES)]
    words += ["--seeds", str(args.seed), "--jobs", "2", "--work-dir", str(args.work_dir)]
    words += ["--cfg-options", *args.cfg_options] if args.cfg_options else []
    options = reproduce.parse_args(words)
    reproduce.check_arguments(options)
    jobs = reproduce.run_table(table, options)
    if not all(job.run.is_finished() for job in jobs):
        sys.exit("[demo] another process trains here, see above; give the command again later")
    return jobs


def run_demo(args: argparse.Namespace) -> None:
    """Train, compare, export and time.

    Raises:
        ValueError: If packages are missing.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(f"the demo needs {', '.join(missing)}: pip install -e .[demo]")
    start, table = time.time(), find_table("digits")
    say(f"results go to {args.work_dir}; Ctrl-C stops, and the same command goes on")

    say("1/4 train a teacher and three students: about 11 minutes on two cores")
    jobs = train(table, args)
    runs = {table.cells[job.record["cell"]].method: job.run for job in jobs}
    teacher, student = runs["teacher"].checkpoint, runs["pat_plus"].checkpoint
    checkpoints = [run.checkpoint for run in runs.values()]
    options = ["--cfg-options", f"model.teacher_checkpoint={teacher}", *args.cfg_options]
    folder = args.work_dir / f"seed_{args.seed}"
    folder.mkdir(exist_ok=True)
    page, onnx, latency = (folder / x for x in ("compare.html", "student.onnx", "latency.txt"))

    say("2/4 evaluate all of them and write a page with their predictions: about a minute")
    if not is_done(page, checkpoints):
        students = [f"{name}={runs[method].folder}" for method, name in NAMES.items()][1:]
        run_command("compare", CONFIG, *students, "--out", page, *options)
    say("3/4 export the student trained with pat_plus to ONNX: about half a minute")
    if not is_done(onnx, checkpoints):
        print(run_command("export", CONFIG, student, onnx, *options), end="")
    say("4/4 time and evaluate student and teacher in PyTorch and ONNX: about two minutes")
    if not is_done(latency, checkpoints):
        output = run_command("benchmark-latency", CONFIG, student, "--evaluate", *options)
        write_atomic(latency, output)

    image = min(Path(jobs[0].cfg.data_root, "val").glob("*.png"))
    print(f"""
{summarize(table, jobs, args.seed)}

mAP, AP50 and AP75 in percent, on other images than those of the training. One seed proves little;
docs/results.md has more.

{latency.read_text()}
The student without PyTorch, {onnx.stat().st_size / 2**20:.1f} MiB:

    from pat_mmdet.deploy import OnnxDetector
    boxes, scores, labels = OnnxDetector("{onnx}")("{image}")

Images side by side, results by class and curves, for a browser:

    {page.resolve().as_uri()}
""")
    say(f"done, in {(time.time() - start) / 60:.1f} minutes")


def main() -> None:
    """Run the demo as the command line says."""
    args = parse_args()
    with clear_errors(args.traceback), reproduce.resumable():
        run_demo(args)


if __name__ == "__main__":
    main()
