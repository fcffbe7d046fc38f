"""Render a comparison of networks as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import html
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

import cv2
import matplotlib
import numpy as np
from matplotlib.figure import Figure

from pat_mmdet.utils import RunDir

# Okabe and Ito's, which also the colour-blind tell apart, less those that mark boxes in the page.
COLORS = ("#333333", "#0072b2", "#e69f00", "#56b4e9", "#cc79a7", "#999999")
_TEMPLATE = Path(__file__).with_name("page.html")
_MAX_SIDE = 480  # pixels of the images
_JPEG_QUALITY = 80
_COLUMNS = 5  # of the curves


def render_page(data: dict, curves: str) -> str:
    """Render the page.

    Args:
        data (dict): What the script in the page shows; plain data, with any text.
        curves (str): An SVG image, or an empty string.

    Returns:
        str: The page. The data is in it as JSON, in the element with the id ``data``.
    """
    text = json.dumps(data, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    parts = dict(
        title=html.escape(data["title"]),
        # Inside a script element, only `<` can end or change it.
        data=text.replace("<", "\\u003c"),
        curves=curves,
    )
    template = _TEMPLATE.read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template)


def encode_image(image: np.ndarray) -> dict:
    """Shrink an image to the size it has in the page, and encode it.

    Args:
        image (np.ndarray): (H, W, 3), BGR.

    Returns:
        dict: ``jpeg``, a data URL, and ``width`` and ``height`` in pixels.
    """
    height, width = image.shape[:2]
    scale = min(1.0, _MAX_SIDE / max(height, width))
    size = max(round(width * scale), 1), max(round(height * scale), 1)
    if scale < 1:
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    jpeg = "data:image/jpeg;base64," + base64.b64encode(content.tobytes()).decode()
    return dict(jpeg=jpeg, width=size[0], height=size[1])


def draw_curves(work_dirs: Sequence[Path | None]) -> str:
    """Draw the metric and the losses of trainings, each in :data:`COLORS` by its place.

    Args:
        work_dirs (Sequence[Path | None]): Work dirs; None and dirs without a log have no curve.

    Returns:
        str: An SVG image; empty if there is no log.
    """
    logs = [RunDir(folder, steps=0).scalars() if folder else [] for folder in work_dirs]
    keys = dict.fromkeys(
        key for log in logs for entry in log for key in entry if _is_shown(key, entry)
    )
    if not keys:
        return ""
    panels = sorted(keys, key=lambda key: ("/" not in key, key != "loss"))
    rows = -(-len(panels) // _COLUMNS)
    with matplotlib.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(14, 2 * rows), layout="constrained")
        for place, key in enumerate(panels, start=1):
            axis = figure.add_subplot(rows, _COLUMNS, place)
            axis.set_title(key, loc="left", fontsize=9, parse_math=False)
            axis.grid(alpha=0.25)
            for index, log in enumerate(logs):
                points = [(entry["step"], entry[key]) for entry in log if key in entry]
                color = COLORS[index % len(COLORS)]
                # A single point shows as a marker alone.
                axis.plot(*zip(*points), color=color, marker="." if len(points) < 20 else None)
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue().partition("<svg")[2].join(["<svg", ""])


def _is_shown(key: str, entry: dict) -> bool:
    """Return True for the losses of a training step, and the first metric of an evaluation."""
    if "loss" in entry:
        return key.startswith("loss")
    return key == next((name for name in entry if "/" in name), None)
