"""Time a training step and the passes that it cannot do without.

All parts run in turn in one process, so that their ratios hold on a noisy machine. A step is
forward and backward pass, without the optimizer, and has the name of its method. The floor of
--method is the sum of the student's passes, the plain teacher's, and with prompts the prompted
teacher's with its backward pass to the prompts, each alone. The bare floor leaves out what the
prompts themselves cost: they are one number a channel there. "library" is the plain teacher with
the libraries' own layers.

Example:
    OMP_NUM_THREADS=1 python tools/analysis_tools/benchmark_step.py \
        configs/pat/swin_p-res18_digits.py --method pat_plus --also fitnet pat --cpu-time
"""

from __future__ import annotations

import argparse
import json
import platform
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from step_arguments import add_arguments

from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.io import write_atomic

if TYPE_CHECKING:
    from torch import nn


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_arguments(parser)
    parser.add_argument("--also", nargs="+", default=[], metavar="METHOD", help="further steps")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="CPU time of the process, which other processes disturb less; use one thread",
    )
    parser.add_argument("--amp", action="store_true", help="mixed precision: fp16, on a CPU bf16")
    parser.add_argument("--compile", action="store_true", help="compile the blocks of the networks")
    parser.add_argument("--repeats", type=int, default=10, help="runs of each part")
    parser.add_argument("--warmup", type=int, default=2, help="runs before those that count")
    parser.add_argument("--json", metavar="FILE", help="write the figures to this file too")
    args = parser.parse_args()
    if min(args.batch_size, args.repeats) < 1 or args.warmup < 0:
        parser.error("--batch-size and --repeats must be at least 1, --warmup at least 0")
    return args


def gradient_memory(model: nn.Module) -> float:
    """What the gradients of all trained parameters take, in MiB."""
    return sum(4 * param.numel() for param in model.parameters() if param.requires_grad) / 2**20


def measure(args: argparse.Namespace) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Run all parts in turn; return the seconds of each run, and the memory in MiB."""
    import torch
    from parts import Parts, default_device, elapsed, peak_memory, saved_memory

    from pat_mmdet.models.acceleration.onednn import disable_malloc_trim
    from pat_mmdet.structures import Requires

    args.device = args.device or default_device()
    dtype = None
    if args.amp:
        dtype = torch.float16 if torch.device(args.device).type == "cuda" else torch.bfloat16
    if torch.device(args.device).type == "cpu":
        disable_malloc_trim()  # as in training
    elif args.cpu_time:
        raise ValueError(f"--cpu-time says nothing about {args.device}; leave it out")
    steps = {
        method: Parts(args, method, dtype, args.compile)
        for method in ("kd", *args.also, args.method)
    }
    own = steps[args.method]
    slow = Parts(args, args.method, dtype, args.compile, fast_teacher=False)
    runs = dict(student=own.student, teacher=own.teacher, library=slow.teacher)
    if Requires.PROMPTS in own.model.distill.requires:
        runs.update(prompted=own.prompted(), bare=own.prompted(bare=True))
    runs.update({method: parts.step for method, parts in steps.items()})
    saved = {
        name: saved_memory(runs[name], own.model)
        for name in ("student", "prompted", args.method)
        if name in runs
    }
    times: dict[str, list[float]] = {name: [] for name in runs}
    for repeat in range(args.warmup + args.repeats):
        for name, run in runs.items():
            spent = elapsed(run, own.device, args.cpu_time)
            if repeat >= args.warmup:
                times[name].append(spent)
    peaks = {name: peak_memory(run, own.device) for name, run in runs.items()}
    return times, dict(peak=peaks, saved=saved, gradients=gradient_memory(own.model))


def report(times: dict[str, list[float]], memory: dict[str, Any], args: argparse.Namespace) -> dict:
    """Put the figures together that are printed and written."""
    import torch

    mid = {name: median(values) for name, values in times.items()}
    saved = memory["saved"]
    passes = [name for name in ("student", "teacher", "prompted") if name in times]
    mid["floor"] = sum(mid[name] for name in passes)
    method = args.method
    ratios = {
        f"{name}_over_kd": (name, "kd") for name in ("student", *args.also, method) if name != "kd"
    }
    ratios[f"{method}_over_floor"] = (method, *passes)
    if "bare" in times:
        ratios[f"{method}_over_bare_floor"] = (method, "student", "teacher", "bare")
    ratios["kd_over_floor"] = ("kd", "student", "teacher")
    ratios["library_over_teacher"] = ("library", "teacher")

    def ratio(part: str, *others: str) -> float:
        """The median over the runs in turn, which the noise of the machine hits alike."""
        pairs = zip(times[part], *(times[other] for other in others))
        return median(top / sum(bottom) for top, *bottom in pairs)

    return dict(
        **mid,
        **{name: ratio(*parts) for name, parts in ratios.items()},
        images_per_second=args.batch_size / mid[method],
        peak_memory_mib=memory["peak"][method],
        saved_over_floor=saved[method] / sum(saved[name] for name in passes if name in saved),
        memory_mib=memory,
        spread={name: [min(values), max(values)] for name, values in times.items()},
        settings={name: value for name, value in vars(args).items() if name != "json"},
        machine=dict(
            device=torch.cuda.get_device_name(args.device)
            if torch.device(args.device).type == "cuda"
            else platform.processor() or platform.machine(),
            threads=torch.get_num_threads(),
            torch=torch.__version__,
            python=platform.python_version(),
        ),
    )


def show(figures: dict) -> None:
    """Print the figures as a table."""
    print(f"{'':>10} {'median ms':>10} {'min':>9} {'max':>9} {'peak MiB':>9}")
    for name, (least, most) in figures["spread"].items():
        print(
            f"{name:>10} {1e3 * figures[name]:10.1f} {1e3 * least:9.1f} {1e3 * most:9.1f}"
            f" {figures['memory_mib']['peak'][name]:9.0f}"
        )
    print(
        f"{'floor':>10} {1e3 * figures['floor']:10.1f}   (student + teacher, and prompted if any)"
    )
    for name in [name for name in figures if "_over_" in name and "saved" not in name]:
        print(f"{name:>20}: {figures[name]:.3f}")
    memory = figures["memory_mib"]
    print(
        "kept for the backward pass, MiB: "
        + ", ".join(f"{name} {size:.0f}" for name, size in memory["saved"].items())
        + f" ({figures['saved_over_floor']:.3f} of student, and prompted if any); "
        f"gradients of parameters {memory['gradients']:.0f}"
    )
    print(f"images a second: {figures['images_per_second']:.2f}")


def main() -> None:
    """Measure as the command line says."""
    args = parse_args()
    with clear_errors(args.traceback):
        figures = report(*measure(args), args)
        show(figures)
        if args.json:
            write_atomic(Path(args.json), json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
