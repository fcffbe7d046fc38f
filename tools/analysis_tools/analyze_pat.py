"""Train a pair with forms of PAT, and plot what the student follows and what the prompts change.

For each level of the teacher, over training: the share of the plain teacher's variance that the
aligned student explains (dashed: the most that maps constant within regions could), its squared
distance to the prompted teacher (dashed: the part that no student could remove), the energy of the
prompted features, and the agreement of prompted and plain logits. Trainings lie in WORK_DIR/METHOD;
those that are done are not repeated, and interrupted ones are resumed.

Example:
    python tools/analysis_tools/analyze_pat.py configs/pat/swin_p-res18_digits.py \
        --methods pat pat_plus --work-dir work_dirs/analysis --cfg-options randomness.seed=0
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from pat_mmdet.cli.arguments import add_cfg_options
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.io import write_atomic
from pat_mmdet.utils.paths import TOOLS

NAME = "pat_statistics"
# Title of a row of the figure, its quantity, another one that is drawn dashed, and why a form may
# have none.
ROWS = (
    ("variance explained", "explained", "explainable", ""),
    ("squared distance / variance", "distance", "irreducible", "no raw distance"),
    ("energy, prompted / plain", "energy", None, "no prompts"),
    ("agreement of logits", "agreement", None, "no prompts"),
)


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="path of the config of a pair")
    parser.add_argument("--methods", nargs="+", default=["pat", "pat_plus"], help="forms of PAT")
    parser.add_argument("--work-dir", required=True, help="folder for trainings and figure")
    parser.add_argument("--interval", type=int, default=10, help="iterations between two records")
    add_cfg_options(parser)
    return parser.parse_args()


def train(args: argparse.Namespace, method: str) -> list[dict]:
    """Train with a form of PAT, unless that is done, and return what the hook recorded.

    Raises:
        RuntimeError: If the training fails.
    """
    from pat_mmdet.utils import RunDir, load_config

    folder = Path(args.work_dir, method)
    options = {
        **(args.cfg_options or {}),
        "default_hooks.pat_statistics": dict(type="PATStatisticsHook", interval=args.interval),
    }
    cfg = load_config(args.config, options, method)
    if not RunDir.from_config(folder, cfg).is_finished():
        # A file, as options of the command line lose their types.
        plain = folder / "config.py"
        write_atomic(plain, cfg.pretty_text)
        command = [sys.executable, TOOLS / "train.py", plain, "--work-dir", folder, "--resume"]
        code = subprocess.run(list(map(str, command)), check=False).returncode
        if code:
            raise RuntimeError(f"the training with {method} ended with exit code {code}")
    return json.loads((folder / f"{NAME}.json").read_text(encoding="utf-8"))


def plot(records: dict[str, list[dict]], path: Path) -> None:
    """Draw the quantities over training, a column for each form and a line for each level.

    Args:
        records (dict[str, list[dict]]): Recorded steps of each form.
        path (Path): File of the figure.
    """
    import matplotlib
    import matplotlib.pyplot as plt

    matplotlib.use("Agg")
    size = (4 * len(records), 2.4 * len(ROWS))
    figure, axes = plt.subplots(
        len(ROWS), len(records), figsize=size, sharex=True, sharey="row", squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for (title, solid, dashed, reason), row in zip(ROWS, axes):
        row[0].set_ylabel(title)
        for axis, steps in zip(row, records.values()):
            for name, style in ((solid, "-"), (dashed, "--")):
                known = [step for step in steps if name in step]
                if not known:
                    continue
                values = [step[name] for step in known]
                lines = axis.plot([step["step"] for step in known], values, style, linewidth=1.2)
                for level, line in enumerate(lines if isinstance(values[0], list) else ()):
                    line.set(color=f"C{level}", label=f"level {level}" if style == "-" else None)
            if not any(solid in step for step in steps):
                axis.text(0.5, 0.5, reason, ha="center", transform=axis.transAxes)
            axis.grid(alpha=0.3)
        if solid == "distance":
            row[0].set_yscale("log")
        else:
            row[0].set_ylim(0, 1.05 * max(1, row[0].get_ylim()[1]))
    for axis, name in zip(axes[0], records):
        axis.set_title(name)
    for axis in axes[-1]:
        axis.set_xlabel("iteration")
    axes[0, 0].legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main() -> None:
    """Train and draw as the command line says."""
    args = parse_args()
    with clear_errors(args.traceback):
        records = {method: train(args, method) for method in args.methods}
        folder = Path(args.work_dir)
        write_atomic(folder / f"{NAME}.json", json.dumps(records, indent=1) + "\n")
        plot(records, folder / f"{NAME}.png")
    print(f"[analyze] {folder / NAME}.json and .png")


if __name__ == "__main__":
    main()
