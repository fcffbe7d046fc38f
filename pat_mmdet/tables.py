"""The tables of results: which trainings they are made of, and what was published for each.

Published numbers are those of PAT (ICCV 2025). A new table is data alone.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from math import isnan, nan
from statistics import mean, stdev

from pat_mmdet.utils.runs import Training

SETTINGS = {
    "equal": "the same iterations, learning rate and EMA for all methods, those of the config",
    "published": "each method with the settings that its authors' run had, as the config's "
    "`published` says",
}
LABELS = {"none": "none (student alone)", "teacher": "teacher (alone)"}


@dataclass(frozen=True)
class Metric:
    """A column of results.

    Attributes:
        name (str): Its heading.
        key (str): Its name in the logs.
        scale (float): Brings a logged value to percent.
        decimals (int): How many of a percentage are known.
    """

    name: str
    key: str
    scale: float
    decimals: int


@dataclass(frozen=True)
class Cell:
    """A training of a table, which may be repeated with other seeds.

    Attributes:
        pair (str): Teacher and student, or the teacher alone.
        method (str): An overlay of ``configs/_base_/methods``, or ``'teacher'`` for a training of
            the teacher itself.
        config (str): Its config, under ``configs``.
        published (tuple[float, ...]): Published results in percent, in the order of the table's
            metrics; empty where there are none.
        teacher (str, optional): Pair of the teacher cell whose checkpoint it learns from; None
            for the checkpoint that the config names.
    """

    pair: str
    method: str
    config: str
    published: tuple[float, ...] = ()
    teacher: str | None = None

    @property
    def name(self) -> str:
        """str: What ``--cells`` calls it."""
        return f"{self.pair}/{self.method}"

    @property
    def is_teacher(self) -> bool:
        """bool: Whether a teacher is trained."""
        return self.method == "teacher"

    @property
    def published_text(self) -> str:
        """str: The published results; empty where there are none."""
        return " / ".join(f"{value:.2f}" for value in self.published)


@dataclass
class Row:
    """What the trainings of a cell came to.

    Attributes:
        cell (Cell): The cell.
        settings (str): A key of :data:`SETTINGS`; empty for a teacher, which has only one.
        seeds (list[int]): Seeds of the trainings that are done; the rest is about these alone.
        results (list[dict]): For each, the evaluation after its last step, as logged.
        seconds (list[float]): For each, the time of all its steps; NaN where it is not known.
        facts (dict[str, set[str]]): What they ran as: ``'length'``, ``'hardware'``,
            ``'revision'``, ``'options'``.
        status (list[str]): A remark on each training that is not done.
    """

    cell: Cell
    settings: str
    seeds: list[int] = field(default_factory=list)
    results: list[dict] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    facts: dict[str, set[str]] = field(default_factory=dict)
    status: list[str] = field(default_factory=list)

    def add(self, seed: int, training: Training, record: dict, key: str) -> None:
        """Adds a training, which counts if it is done.

        Args:
            seed (int): Its seed.
            training (Training): Its work dir.
            record (dict): Its ``run.json``; empty if it was started by hand.
            key (str): The value that it must have been evaluated for.
        """
        starts = record.get("starts", [])
        result = training.metrics() if training.done() else None
        if result is None:
            failed = " failed" if starts and starts[-1]["exit_code"] else ""
            self.status.append(f"seed {seed}: {training.progress()}/{training.steps}{failed}")
            return
        if key not in result:
            self.status.append(f"seed {seed}: evaluated without a {key}")
            return
        self.seeds.append(seed)
        self.results.append(result)
        self.seconds.append(training.seconds())
        facts = {name: {start[name] for start in starts} for name in ("hardware", "revision")}
        facts["length"] = {f"{training.steps} {training.unit_name}"}
        facts["options"] = {" ".join(record.get("options", ()))} - {""}
        for name, values in facts.items():
            self.facts.setdefault(name, set()).update(values)


@dataclass(frozen=True)
class Table:
    """Trainings to compare.

    Attributes:
        name (str): What ``--table`` calls it.
        title (str): Data set, split and networks, for people.
        metrics (tuple[Metric, ...]): The columns; the first one is compared with what is published.
        cells (tuple[Cell, ...]): The rows.
        data (str): How to get the data.
        generator (tuple[str, ...]): Tool and flags that make the data, where that is possible.
    """

    name: str
    title: str
    metrics: tuple[Metric, ...]
    cells: tuple[Cell, ...]
    data: str
    generator: tuple[str, ...] = ()

    def select(self, patterns: Sequence[str]) -> list[Cell]:
        """The cells whose name matches one of the shell patterns, in the table's order.

        Raises:
            ValueError: If a pattern matches none.
        """
        for pattern in patterns:
            if not any(fnmatchcase(cell.name, pattern) for cell in self.cells):
                known = ", ".join(cell.name for cell in self.cells)
                raise ValueError(
                    f"{pattern!r} matches no cell of table {self.name!r}; its cells: {known}"
                )
        return [
            cell
            for cell in self.cells
            if any(fnmatchcase(cell.name, pattern) for pattern in patterns)
        ]

    def teacher_of(self, cell: Cell) -> Cell | None:
        """The teacher cell whose checkpoint a cell learns from, if there is one."""
        if cell.teacher is None:
            return None
        return next(other for other in self.cells if other.name == f"{cell.teacher}/teacher")

    def csv(self, rows: Sequence[Row]) -> str:
        """Formats rows as CSV, with all columns."""
        text = io.StringIO()
        table = [self._fields(row) for row in rows]
        writer = csv.DictWriter(text, list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
        return text.getvalue()

    def markdown(self, rows: Sequence[Row]) -> str:
        """Formats rows as Markdown, with an explanation; columns without content are left out."""
        table = []
        for row in rows:
            fields = self._fields(row)
            fields["method"] = LABELS.get(row.cell.method, row.cell.method)
            for metric in self.metrics:
                spread = fields.pop(f"{metric.name} std")
                fields[metric.name] += f" ± {spread}" if spread else ""
            table.append({key: value.replace("|", "\\|") for key, value in fields.items()})
        first, names = self.metrics[0].name, ", ".join(metric.name for metric in self.metrics)
        shown = [key for key in table[0] if key == first or any(fields[key] for fields in table)]
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
            "- revision: of this project, with + if files differed from it.",
            *(f"- settings `{name}`: {meaning}." for name, meaning in SETTINGS.items()),
            "",
            f"| {' | '.join(shown)} |",
            "|---" * len(shown) + "|",
            *(f"| {' | '.join(fields[key] for key in shown)} |" for fields in table),
        ]
        return "\n".join(lines) + "\n"

    def _fields(self, row: Row) -> dict[str, str]:
        """The columns of a row; nothing stands where nothing is known."""
        fields = {"pair": row.cell.pair, "method": row.cell.method, "settings": row.settings}
        difference = ""
        for index, metric in enumerate(self.metrics):
            values = [
                entry[metric.key] * metric.scale for entry in row.results if metric.key in entry
            ]
            known = bool(values) and len(values) == len(row.results)
            fields[metric.name] = f"{mean(values):.{metric.decimals}f}" if known else ""
            spread = known and len(values) > 1
            fields[f"{metric.name} std"] = f"{stdev(values):.{metric.decimals}f}" if spread else ""
            if index == 0 and known and row.cell.published:
                difference = f"{mean(values) - row.cell.published[0]:+.{metric.decimals}f}"
        seconds = mean(row.seconds) if row.seconds else nan
        return {
            **fields,
            "seeds": " ".join(str(seed) for seed in row.seeds),
            "published": row.cell.published_text,
            "difference": difference,
            "length": "; ".join(sorted(row.facts.get("length", ()))),
            "seconds": "" if isnan(seconds) else f"{seconds:.0f}",
            **{
                key: "; ".join(sorted(row.facts.get(key, ())))
                for key in ("hardware", "revision", "options")
            },
            "status": "; ".join(row.status),
        }


# mmdet logs fractions with three decimals.
_COCO_METRICS = tuple(
    Metric(name, f"coco/bbox_{key}", scale=100.0, decimals=1)
    for name, key in (("mAP", "mAP"), ("AP50", "mAP_50"), ("AP75", "mAP_75"))
)
_DETECTION = (
    "none", "kd", "dkd", "dist", "ofa", "fitnet", "pkd", "cwd", "mgd", "cc", "rkd", "pat",
)  # fmt: skip

_COCO = {
    "swin_t-res18": {
        "none": (33.26, 53.61, 35.26),
        "kd": (34.07, 55.26, 36.48),
        "dkd": (29.96, 51.17, 31.36),
        "ofa": (33.37, 54.98, 35.13),
        "fitnet": (35.23, 56.09, 37.31),
        "pat": (35.62, 56.67, 38.04),
    },
    "swin_t-mbv2": {
        "none": (29.47, 48.87, 30.90),
        "kd": (31.46, 52.40, 32.74),
        "dkd": (32.10, 53.82, 33.88),
        "ofa": (31.69, 52.91, 32.88),
        "fitnet": (32.48, 52.62, 34.67),
        "pat": (32.97, 54.18, 35.08),
    },
}


def _small(name: str, pair: str, **kwargs: object) -> Table:
    """A table of one pair, whose teacher is trained here too; nothing is published for it."""
    teacher = pair.partition("-")[0]
    return Table(
        name=name,
        metrics=_COCO_METRICS,
        cells=(
            Cell(
                teacher,
                "teacher",
                f"teachers/faster-rcnn_{teacher.replace('_', '-')}_fpn_{name}.py",
            ),
            *(
                Cell(
                    pair,
                    method,
                    f"pat/{pair}_{name}.py",
                    teacher=None if method == "none" else teacher,
                )
                for method in _DETECTION
            ),
        ),
        **kwargs,
    )


TABLES = {
    table.name: table
    for table in (
        Table(
            name="coco",
            title="COCO val2017, Faster R-CNN. The students' teacher is MMDetection's checkpoint "
            "(46.0 mAP as published) unless another one was given; `swin_t/teacher` is the "
            "paper's own, trained here",
            metrics=_COCO_METRICS,
            cells=(
                Cell(
                    "swin_t",
                    "teacher",
                    "teachers/faster-rcnn_swin-t_fpn_3x_coco.py",
                    (45.14, 67.09, 49.25),
                ),
                *(
                    Cell(pair, method, f"pat/{pair}_coco.py", published.get(method, ()))
                    for pair, published in _COCO.items()
                    for method in _DETECTION
                ),
            ),
            data="download COCO from cocodataset.org (annotations/, train2017/, val2017/)",
        ),
        _small(
            "digits",
            "swin_p-res18",
            title="Handwritten digits on photographs (generated), small Faster R-CNN. Nothing is "
            "published for this table",
            data="run tools/data/make_digits.py",
            generator=("data/make_digits.py", "--train", "3000", "--val", "200", "--seed", "0"),
        ),
        _small(
            "bccd",
            "swin_p-mbv2",
            title="BCCD blood cells, small Faster R-CNN. Nothing is published for this table",
            data="get github.com/Shenggan/BCCD_Dataset and convert it with tools/data/voc2coco.py; "
            "the commands are in docs/results.md",
        ),
    )
}


def find_table(name: str) -> Table:
    """The table of a name.

    Raises:
        ValueError: If there is none.
    """
    if name not in TABLES:
        raise ValueError(f"unknown table {name!r}; known tables: {', '.join(TABLES)}")
    return TABLES[name]
