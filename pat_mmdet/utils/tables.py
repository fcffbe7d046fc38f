"""Tables of results: their cells and published numbers (configs/tables.yml), and their format."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from math import isnan
from statistics import mean, stdev
from typing import NamedTuple

import numpy as np
import yaml

from pat_mmdet.utils.config import SETTINGS
from pat_mmdet.utils.paths import CONFIGS
from pat_mmdet.utils.runs import RunDir

# Columns of the training time, and of the student alone in the same time.
TIME = "seconds undisturbed"
ALONE = "alone in that time"
LABELS = {"none": "none (student alone)", "teacher": "teacher (alone)"}


class Metric(NamedTuple):
    """A column of results.

    Attributes:
        name (str): Heading of the column.
        key (str): Key in the logs.
        scale (float): Factor from the logged value to percent.
        decimals (int): Decimals of a percentage that are logged.
    """

    name: str
    key: str
    scale: float
    decimals: int


METRICS = {
    # MMDetection logs fractions with three decimals.
    "detection": (
        Metric("mAP", "coco/bbox_mAP", 100.0, 1),
        Metric("AP50", "coco/bbox_mAP_50", 100.0, 1),
        Metric("AP75", "coco/bbox_mAP_75", 100.0, 1),
    ),
    "classification": (
        Metric("top-1", "accuracy/top1", 1.0, 2),
        Metric("top-5", "accuracy/top5", 1.0, 2),
    ),
}


@dataclass(frozen=True)
class Cell:
    """A training of a table, to be repeated with several seeds.

    Attributes:
        pair (str): Teacher and student, or the one network that is trained alone.
        method (str): An overlay in ``configs/_base_/methods``, or ``'teacher'`` for the training of
            a teacher.
        config (str): Path of the config below ``configs``.
        published (tuple[float, ...]): Published results in percent, in the order of the table's
            metrics; empty if there are none.
        teacher (str, optional): Name of the cell whose checkpoint is the teacher; None for the
            checkpoint that the config names.
    """

    pair: str
    method: str
    config: str
    published: tuple[float, ...] = ()
    teacher: str | None = None

    @property
    def name(self) -> str:
        """str: Name for ``--cells``."""
        return f"{self.pair}/{self.method}"

    @property
    def is_teacher(self) -> bool:
        """bool: Whether a teacher is trained."""
        return self.method == "teacher"

    @property
    def published_text(self) -> str:
        """str: The published results; empty if there are none."""
        return " / ".join(f"{value:.2f}" for value in self.published)


@dataclass(frozen=True)
class Table:
    """Trainings that are compared.

    Attributes:
        name (str): Name for ``--table``.
        title (str): Dataset, split and networks.
        metrics (tuple[Metric, ...]): Columns; the first one is compared with the published results.
        cells (dict[str, Cell]): Rows by name, teachers first.
        data (str): How to get the data.
        generator (tuple[str, ...]): Tool and arguments that generate the data, if that is possible.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    cells: dict[str, Cell]
    data: str
    generator: tuple[str, ...]

    def select(self, patterns: Sequence[str]) -> list[Cell]:
        """Return the cells whose name matches one of the shell patterns, in the table's order.

        Raises:
            ValueError: If a pattern matches no cell.
        """
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in self.cells):
                raise ValueError(
                    f"{pattern!r} matches no cell of table {self.name!r}; its cells: "
                    f"{', '.join(self.cells)}"
                )
        return [
            cell
            for name, cell in self.cells.items()
            if any(fnmatchcase(name, pattern) for pattern in patterns)
        ]

    def row(
        self,
        cell: Cell,
        settings: str,
        runs: Mapping[int, tuple[RunDir, dict]],
        variant: str = "",
    ) -> dict[str, str]:
        """Return the columns of a cell; columns about which nothing is known are empty.

        Args:
            cell (Cell): The cell.
            settings (str): A key of :data:`SETTINGS`; empty for a teacher.
            runs (Mapping[int, tuple[RunDir, dict]]): Work dir and ``run.json`` (empty if it was
                started by hand) of each seed.
            variant (str): What sets these trainings apart from the table's own.
        """
        first = self.metrics[0]
        finished, status = {}, []
        for seed, (run, record) in sorted(runs.items()):
            result = run.metrics() if run.is_finished() else None
            if result is not None and first.key in result:
                finished[seed] = result
            elif result is not None:
                status.append(f"seed {seed}: evaluated without a {first.key}")
            else:
                starts = record.get("starts")
                failed = " failed" if starts and starts[-1]["exit_code"] else ""
                status.append(f"seed {seed}: {run.progress()}/{run.steps}{failed}")

        row = dict(pair=cell.pair, method=cell.method, variant=variant, settings=settings)
        for name, key, scale, decimals in self.metrics:
            values = [result[key] * scale for result in finished.values() if key in result]
            row[name] = f"{mean(values):.{decimals}f}" if values else ""
            row[f"{name} std"] = f"{stdev(values):.{decimals}f}" if len(values) > 1 else ""
        row["seeds"] = " ".join(str(seed) for seed in finished)
        row["published"] = cell.published_text
        row["difference"] = ""
        if finished and cell.published:
            ours = mean(result[first.key] * first.scale for result in finished.values())
            row["difference"] = f"{ours - cell.published[0]:+.{first.decimals}f}"
        done = [runs[seed] for seed in finished]
        row["length"] = _join(f"{run.steps} {run.unit_name}" for run, _ in done)
        times = [run.train_time() for run, _ in done]
        row["seconds"] = f"{mean(times):.0f}" if times and not isnan(sum(times)) else ""
        times = [run.undisturbed_time() for run, _ in done]
        row[TIME] = f"{min(times):.0f}" if times and not isnan(sum(times)) else ""
        row[ALONE] = ""
        for key in ("hardware", "revision"):
            row[key] = _join(s[key] for _, record in done for s in record.get("starts", ()))
        row["options"] = _join(" ".join(record.get("options", ())) for _, record in done)
        row["status"] = "; ".join(status)
        return row

    def fill_alone(self, rows: Sequence[dict[str, str]]) -> None:
        """Fill in what the student alone reaches in the training time of each method.

        It is interpolated between the lengths for which the student was trained alone, and left
        empty outside of them.

        Args:
            rows (Sequence[dict[str, str]]): All rows of the table, changed in place.
        """
        metric = self.metrics[0]
        alone: dict[tuple[str, str], list[tuple[float, float]]] = {}
        for row in rows:
            if row["method"] == "none" and row[metric.name] and row[TIME]:
                key = find_student(row["pair"]), row["settings"]
                alone.setdefault(key, []).append((float(row[TIME]), float(row[metric.name])))
        for row in rows:
            points = alone.get((find_student(row["pair"]), row["settings"]), [])
            if row["method"] not in ("none", "teacher") and row[TIME] and points:
                seconds, values = zip(*sorted(points))
                value = np.interp(float(row[TIME]), seconds, values, left=np.nan, right=np.nan)
                row[ALONE] = "" if isnan(value) else f"{value:.{metric.decimals}f}"

    def csv(self, rows: Sequence[dict[str, str]]) -> str:
        """Format rows as CSV, with all columns."""
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue()

    def markdown(self, rows: Sequence[dict[str, str]]) -> str:
        """Format rows as Markdown with an explanation, without empty columns."""
        table = []
        for row in rows:
            shown = {key: value.replace("|", "\\|") for key, value in row.items()}
            shown["method"] = LABELS.get(row["method"], row["method"])
            for metric in self.metrics:
                deviation = shown.pop(f"{metric.name} std")
                shown[metric.name] += f" ± {deviation}" if deviation else ""
            table.append(shown)
        first, names = self.metrics[0].name, ", ".join(metric.name for metric in self.metrics)
        columns = [key for key in table[0] if key == first or any(row[key] for row in table)]
        lines = [
            f"# {self.name}",
            "",
            f"{self.title}.",
            "",
            f"- {names}: ours, in percent, after the last step; mean over the seeds ± sample "
            "standard deviation.",
            f"- published: {names} of the paper (PAT, ICCV 2025); difference: our mean {first} "
            "minus the published.",
            "- seconds: of the training steps with data loading, mean over the seeds; longer where "
            "several jobs shared a machine.",
            f"- {TIME}: iterations times the fastest mean of the log (over 50 iterations as a "
            "rule), the least of the seeds.",
            f"- {ALONE}: {first} of the student alone, interpolated between its lengths.",
            "- variant: trainings of another work dir, see their options.",
            "- revision: of this project, with + if tracked files differed from it.",
            *(f"- settings `{name}`: {meaning}." for name, meaning in SETTINGS.items()),
            "",
            f"| {' | '.join(columns)} |",
            "|---" * len(columns) + "|",
            *(f"| {' | '.join(row[key] for key in columns)} |" for row in table),
        ]
        return "\n".join(lines) + "\n"


def find_student(pair: str) -> str:
    """Return the student of TEACHER-STUDENT; a network that is trained alone as it is."""
    return pair.rpartition("-")[2]


def _join(values: Iterable[str]) -> str:
    return "; ".join(sorted(set(values) - {""}))


def _build(
    name: str,
    task: str,
    title: str,
    data: str,
    methods: Sequence[str],
    pairs: Mapping[str, Sequence[float | Sequence[float] | None]],
    columns: Sequence[str] = (),
    teachers: Mapping[str, str] | None = None,
    train_teacher: bool = False,
    share_student: bool = False,
    generator: Sequence[str] = (),
) -> Table:
    """Build a table from its entry in ``configs/tables.yml``, which describes the arguments."""
    teachers = teachers or {}
    trained: dict[str, Cell] = {}
    alone: dict[str, Cell] = {}
    cells = []
    for pair, numbers in pairs.items():
        published = {
            column: tuple(value) if isinstance(value, list) else (value,)
            for column, value in zip(columns, numbers)
            if value is not None
        }
        teacher, student = pair.split("-")
        config = f"pat/{pair}_{name}.py"
        if teacher in teachers:
            path = f"teachers/{teachers[teacher]}.py"
            trained[teacher] = Cell(teacher, "teacher", path, published.get("teacher", ()))
        if share_student:
            alone.setdefault(student, Cell(student, "none", config, published.get("none", ())))
        for method in methods:
            source = f"{teacher}/teacher" if train_teacher and method != "none" else None
            cells.append(Cell(pair, method, config, published.get(method, ()), source))
    rows = (*trained.values(), *alone.values(), *cells)
    by_name = {cell.name: cell for cell in rows}
    return Table(name, title, METRICS[task], by_name, data, tuple(generator))


@cache
def load_tables() -> dict[str, Table]:
    """Load all tables by name."""
    content = yaml.safe_load((CONFIGS / "tables.yml").read_text(encoding="utf-8"))
    return {name: _build(name, **entry) for name, entry in content.items()}


def find_table(name: str) -> Table:
    """Return the table of a name.

    Raises:
        ValueError: If there is none.
    """
    tables = load_tables()
    if name not in tables:
        raise ValueError(f"unknown table {name!r}; known tables: {', '.join(tables)}")
    return tables[name]
