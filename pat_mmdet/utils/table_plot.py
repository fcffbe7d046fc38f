"""Figure of a table of results: accuracy against training time."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pat_mmdet.utils.tables import TIME, Table, find_student

_LABEL_HEIGHT = 0.19  # inches


def plot_table(table: Table, rows: Sequence[dict[str, str]]) -> Figure | None:
    """Draw the mean of the first metric against the training time, a panel for each student.

    Error bars are the sample standard deviation. The student alone is a line over its lengths, the
    teacher a dashed one, without its training time.

    Args:
        table (Table): The table.
        rows (Sequence[dict[str, str]]): Its rows, as :meth:`Table.row` returns them.

    Returns:
        Figure | None: None if no student of the table has a result.
    """
    metric = table.metrics[0].name
    rows = [row for row in rows if row[metric] and row[TIME]]
    teachers = {row["pair"]: float(row[metric]) for row in rows if row["method"] == "teacher"}
    students: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        if row["method"] != "teacher":
            students.setdefault(row["pair"], []).append(row)
    # A student that all its pairs share is drawn in each of them.
    shared = {name: students.pop(name) for name in list(students) if "-" not in name}
    for pair, members in students.items():
        members += shared.get(find_student(pair), [])
    panels = students or shared
    if not panels:
        return None
    height = max(3.5, 1.2 + _LABEL_HEIGHT * (1 + max(map(len, panels.values()))))
    figure = Figure(figsize=(7.5, height * len(panels)), layout="constrained")
    labels = []
    for place, (pair, members) in enumerate(panels.items(), start=1):
        axis = figure.add_subplot(len(panels), 1, place)
        axis.set_title(f"{table.name}: {pair}", loc="left", fontsize=10)
        axis.set_ylabel(f"{metric} (%)")
        axis.set_xlabel("training time (s)")
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25)
        labels.append(_draw_panel(axis, members, metric, teachers.get(pair.partition("-")[0])))
    figure.draw_without_rendering()  # decides the heights of the panels
    for axis, names in zip(figure.axes, labels):
        _label_points(axis, names)
    return figure


def _draw_panel(
    axis: Axes, rows: Sequence[dict[str, str]], metric: str, teacher: float | None
) -> list[tuple[float, float, str, str]]:
    """Draw the results of a student; return y, x, name and colour of each, by y."""
    labels = []
    for row in rows:
        is_alone = row["method"] == "none"
        color = "C3" if row["method"].startswith("pat") else "C0"
        color = "black" if is_alone else "C2" if row["variant"] else color
        name = row["variant"] or ("student alone" if is_alone else row["method"])
        if row["settings"] != "equal":
            name += f" ({row['settings']})"
        if is_alone and not row["variant"]:
            name += f", {row['length']}"
        x, y = float(row[TIME]), float(row[metric])
        deviation = float(row[f"{metric} std"] or 0)
        axis.errorbar(x, y, deviation or None, fmt="o", markersize=4, color=color, capsize=2)
        labels.append((y, x, name, color))
    alone = sorted((x, y) for y, x, _, color in labels if color == "black")
    axis.plot(*zip(*alone) if alone else ((), ()), color="black", linewidth=1)
    if teacher is not None:
        axis.axhline(teacher, color="gray", linestyle="--", linewidth=1)
        labels.append((teacher, axis.get_xlim()[1], "teacher", "gray"))
    axis.set_xlim(left=0)
    return sorted(labels)


def _label_points(axis: Axes, labels: Sequence[tuple[float, float, str, str]]) -> None:
    """Write the names of points beside the axes, with a line from each to its point.

    Args:
        axis (Axes): The axes, with all that is drawn in them.
        labels (Sequence[tuple[float, float, str, str]]): Y, x, name and colour, by y.
    """
    bottom, top = axis.get_ylim()
    axis.set_ylim(bottom, top)
    height = axis.get_window_extent().height / axis.figure.dpi
    gap = (top - bottom) * _LABEL_HEIGHT / height
    heights = [y for y, *_ in labels]
    # Upwards, each label is moved away from the one below; downwards, from the one above. Between
    # both they lie nearer to their points, and are as far apart.
    upwards = accumulate(heights, lambda below, y: max(y, below + gap))
    downwards = [*accumulate(reversed(heights), lambda above, y: min(y, above - gap))][::-1]
    for index, (high, low) in enumerate(zip(upwards, downwards)):
        place = max((high + low) / 2, bottom + gap * index)
        place = min(place, top - gap * (len(labels) - 1 - index))
        y, x, name, color = labels[index]
        axis.annotate(
            name, (x, y), (1.03, place), textcoords=axis.get_yaxis_transform(), color=color,
            fontsize=8, va="center", annotation_clip=False, parse_math=False,
            arrowprops=dict(arrowstyle="-", color=color, linewidth=0.5, alpha=0.4, relpos=(0, 0.5)),
        )  # fmt: skip
