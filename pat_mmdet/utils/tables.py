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

from pat_mmdet.utils.config import SETTINGS
from pat_mmdet.utils.runs import RunDir

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

    def add(self, seed: int, training: RunDir, record: dict, key: str) -> None:
        """Adds a training, which counts if it is done.

        Args:
            seed (int): Its seed.
            training (RunDir): Its work dir.
            record (dict): Its ``run.json``; empty if it was started by hand.
            key (str): The value that it must have been evaluated for.
        """
        starts = record.get("starts", [])
        result = training.metrics() if training.is_finished() else None
        if result is None:
            failed = " failed" if starts and starts[-1]["exit_code"] else ""
            self.status.append(f"seed {seed}: {training.progress()}/{training.steps}{failed}")
            return
        if key not in result:
            self.status.append(f"seed {seed}: evaluated without a {key}")
            return
        self.seeds.append(seed)
        self.results.append(result)
        self.seconds.append(training.train_time())
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
    "pat_fast",
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


_TOP1 = tuple(Metric(f"top-{k}", f"accuracy/top{k}", scale=1.0, decimals=2) for k in (1, 5))
_CLASSIFICATION = ("none", "kd", "dkd", "dist", "ofa", "fitnet", "cc", "rkd", "crd", "pat")

# Top-1 of the teacher, of the student alone, and with the methods.
_CIFAR100 = """
                        teacher none  kd    dkd   dist  ofa   fitnet cc    rkd   crd   pat
swin_t-res18            89.26 74.01 78.74 80.26 77.75 80.54 78.87 74.19 74.11 77.63 81.22
vit_s-res18             92.04 74.01 77.26 78.10 76.49 80.15 77.71 74.26 73.72 76.60 80.11
mixer_b16-res18         87.29 74.01 77.79 78.67 76.36 79.39 77.15 74.26 73.75 76.42 80.07
swin_t-mbv2             89.26 73.68 74.68 71.07 72.89 80.98 74.28 71.19 69.00 79.80 78.78
vit_s-mbv2              92.04 73.68 72.77 69.80 72.54 78.45 73.54 70.67 68.46 78.14 78.87
mixer_b16-mbv2          87.29 73.68 73.33 70.20 73.26 78.78 73.78 70.73 68.95 78.15 78.62
convnext_t-deit_t       88.41 68.00 72.99 74.60 73.55 75.76 60.78 68.01 69.79 65.94 79.59
mixer_b16-deit_t        87.29 68.00 71.36 73.44 71.67 73.90 71.05 68.13 69.89 65.35 74.66
convnext_t-swin_p       88.41 72.63 76.44 76.80 76.41 78.32 24.06 72.63 71.73 67.09 80.74
mixer_b16-swin_p        87.29 72.63 75.93 76.39 75.85 78.93 75.20 73.32 70.82 67.03 78.44
convnext_t-resmlp_s12   88.41 66.56 72.25 73.22 71.93 81.22 45.47 67.70 65.82 63.35 83.50
swin_t-resmlp_s12       89.26 66.56 71.89 72.82 11.05 80.63 63.12 68.37 64.66 61.72 80.94
"""
_IMAGENET = """
                        teacher none  fitnet cc    rkd   crd   kd    dkd   dist  ofa   pat
deit_t-res18            72.17 69.75 70.44 69.77 69.47 69.25 70.22 69.39 70.64 71.34 -
swin_t-res18            81.38 69.75 71.18 70.07 68.89 69.09 71.14 71.10 70.91 71.85 71.54
mixer_b16-res18         76.62 69.75 70.78 70.05 69.46 68.40 70.89 69.89 70.66 71.38 -
deit_t-mbv2             72.17 68.87 70.95 70.69 69.72 69.60 70.87 70.14 71.08 71.39 -
swin_t-mbv2             81.38 68.87 71.75 70.69 67.52 69.58 72.05 71.71 71.76 72.32 -
mixer_b16-mbv2          76.62 68.87 71.59 70.79 69.86 68.89 71.92 70.93 71.74 72.12 72.22
res50-deit_t            80.38 72.17 75.84 72.56 72.06 68.53 75.10 75.60 75.13 76.55 -
convnext_t-deit_t       82.05 72.17 70.45 73.12 71.47 69.18 74.00 73.95 74.07 74.41 74.44
mixer_b16-deit_t        76.62 72.17 74.38 72.82 72.24 68.23 74.16 72.82 74.22 74.46 -
res50-swin_n            80.38 75.53 78.33 76.05 75.90 73.90 77.58 78.23 77.95 78.64 -
convnext_t-swin_n       82.05 75.53 74.81 75.79 75.48 74.15 77.15 77.00 77.25 77.50 -
mixer_b16-swin_n        76.62 75.53 76.17 75.81 75.52 73.38 76.26 75.03 76.54 76.63 -
res50-resmlp_s12        80.38 76.65 78.13 76.21 75.45 73.23 77.41 78.23 77.71 78.53 -
convnext_t-resmlp_s12   82.05 76.65 74.69 75.79 75.28 73.57 76.84 77.23 77.24 77.53 -
swin_t-resmlp_s12       81.38 76.65 76.48 76.15 75.10 73.40 76.67 76.99 77.25 77.31 77.59
"""


def _classification(name: str, published: str, train_teachers: bool, **kwargs: object) -> Table:
    """A table of many pairs, in which each network alone is trained once."""
    header, *lines = (line.split() for line in published.strip().splitlines())
    alone, pairs = {}, []
    for pair, *numbers in lines:
        found = {
            method: (float(number),) for method, number in zip(header, numbers) if number != "-"
        }
        teacher, student = pair.split("-")
        config = f"pat/{pair}_{name}.py"
        if train_teachers:
            teacher_config = f"teachers/{teacher}_{name}.py"
            alone[teacher, "teacher"] = Cell(teacher, "teacher", teacher_config, found["teacher"])
        alone.setdefault((student, "none"), Cell(student, "none", config, found["none"]))
        pairs += [
            Cell(pair, method, config, found.get(method, ()))
            for method in _CLASSIFICATION
            if method != "none"
        ]
    return Table(name=name, metrics=_TOP1, cells=(*alone.values(), *pairs), **kwargs)


def _small(
    name: str,
    pairs: Sequence[str],
    teacher_config: str,
    metrics: tuple[Metric, ...],
    methods: Sequence[str],
    **kwargs: object,
) -> Table:
    """A table of pairs whose teacher is trained here too; nothing is published for it."""
    teacher = pairs[0].partition("-")[0]
    students = (
        Cell(
            pair,
            method,
            f"pat/{pair}_{name}.py",
            teacher=None if method == "none" else teacher,
        )
        for pair in pairs
        for method in methods
    )
    cells = (Cell(teacher, "teacher", f"teachers/{teacher_config}_{name}.py"), *students)
    return Table(name=name, metrics=metrics, cells=cells, **kwargs)


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
        _classification(
            "cifar100",
            _CIFAR100,
            train_teachers=True,
            title="CIFAR-100 test images at 224 pixels. The students' teachers are the released "
            "checkpoints that the configs name, unless another one was given; the teacher cells "
            "train them here",
            data="unpack the public archive with tools/dataset_converters/cifar100.py",
        ),
        _classification(
            "imagenet",
            _IMAGENET,
            train_teachers=False,
            title="ImageNet-1K validation images. The teachers are those of timm",
            data="put ImageNet into the usual folders, which "
            "tools/dataset_converters/imagenet.py checks",
        ),
        _small(
            "cifar10",
            ("tinyvit_mini-res18_mini", "tinyvit_mini-mixer_mini"),
            "tinyvit_mini",
            _TOP1,
            (*_CLASSIFICATION, "pat_fast"),
            title="CIFAR-10 images in folders, small networks. Nothing is published for this table",
            data="unpack them with tools/dataset_converters/cifar10.py",
        ),
        _small(
            "digits",
            ("swin_p-res18",),
            "faster-rcnn_swin-p_fpn",
            _COCO_METRICS,
            _DETECTION,
            title="Handwritten digits on photographs (generated), small Faster R-CNN. Nothing is "
            "published for this table",
            data="run tools/dataset_converters/make_digits.py",
            generator=(
                "dataset_converters/make_digits.py",
                "--train",
                "3000",
                "--val",
                "200",
                "--seed",
                "0",
            ),
        ),
        _small(
            "bccd",
            ("swin_p-mbv2",),
            "faster-rcnn_swin-p_fpn",
            _COCO_METRICS,
            _DETECTION,
            title="BCCD blood cells, small Faster R-CNN. Nothing is published for this table",
            data="get github.com/Shenggan/BCCD_Dataset and convert it with "
            "tools/dataset_converters/voc2coco.py; "
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
