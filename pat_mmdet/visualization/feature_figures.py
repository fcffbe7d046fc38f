"""Figures of features: attention over regions, prompted teachers, similarity of stages."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor

from pat_mmdet.evaluation.features import energy_kept

_WIDTH = 7.6  # inches, at 100 dots each about the width of a README
_STYLE: Any = {"font.size": 8, "axes.titlesize": 8, "axes.labelsize": 8}
# Perceptually even maps, which also the colour-blind can read.
_SEQUENTIAL, _DIVERGING = "cividis", "PuOr_r"
# Darkening of a color by a black pixel of the image; steps from there to white, and pixels of its
# longer side: few keep files small.
_TEXTURE, _STEPS, _SIDE = 0.4, 4, 64
_MARK = "#d55e00"  # vermillion of Okabe and Ito, on photographs and on cividis


def draw_attention(attention: Tensor, image: np.ndarray, region: tuple[int, int]) -> Figure:
    """Draw what a region attends to: queries of each level in a row, keys of each in a column.

    Args:
        attention (Tensor): Weights (S, g, g, S, g, g) of an image with S levels.
        image (np.ndarray): The image (H, W, 3), RGB, 0 to 255.
        region (tuple[int, int]): Row and column of the region of the queries, from 0.

    Returns:
        Figure: Weights are given as multiples of the mean weight, shares of levels in percent.
    """
    row, column = region
    weights = attention[:, row, column].float().cpu().numpy()  # (S, S, g, g)
    num_levels, grid = len(weights), weights.shape[-1]
    relative = weights * weights[0].size
    colors = ScalarMappable(Normalize(0, relative.max()), _SEQUENTIAL)
    side = (_WIDTH - 0.8) / (num_levels + 1)
    size = (_WIDTH, num_levels * (side * image.shape[0] / image.shape[1] + 0.2))
    with matplotlib.rc_context(_STYLE):
        figure = Figure(size, layout="constrained")
        axes = figure.subplots(num_levels, num_levels + 1, squeeze=False)
        _show_map(axes[0, 0], image, image)
        _mark_region(axes[0, 0], region, grid, image)
        axes[0, 0].set_title(f"region ({row}, {column})")
        for query, (blank, *line) in enumerate(axes):
            if query:
                blank.set_axis_off()
            line[0].set_ylabel(f"from level {query + 1}")
            for key, axis in enumerate(line):
                _show_map(axis, shade(relative[query, key], image, colors), image)
                axis.set_title(f"to level {key + 1}: {weights[query, key].sum():.0%}")
            _mark_region(line[query], region, grid, image)
        figure.colorbar(colors, ax=axes, label="attention / its mean", shrink=0.6, pad=0.01)
    return figure


def shade(values: np.ndarray, image: np.ndarray, colors: ScalarMappable) -> np.ndarray:
    """Color regions of an image by values, and keep its brightness in a few steps as a texture.

    Args:
        values (np.ndarray): Value of each region, (g, g).
        image (np.ndarray): The image (H, W, 3), RGB, 0 to 255.
        colors (ScalarMappable): Colors of the values.

    Returns:
        np.ndarray: The image, made smaller, 0 to 255.
    """
    scale = min(1.0, _SIDE / max(image.shape[:2]))
    size = [max(round(side * scale), 1) for side in image.shape[1::-1]]
    gray = cv2.resize(image, size, interpolation=cv2.INTER_AREA).mean(2, keepdims=True)
    rows, columns = (np.arange(side) * len(values) // side for side in gray.shape[:2])
    color = colors.to_rgba(values[np.ix_(rows, columns)])[..., :3]
    brightness = (gray / 255 * _STEPS).round() / _STEPS
    texture = 1 - _TEXTURE * (1 - brightness)
    return (255 * color * texture).round().astype(np.uint8)


def draw_prompts(
    plain: Sequence[Tensor], prompted: Sequence[Tensor], image: np.ndarray, names: Sequence[str]
) -> Figure:
    """Draw what prompts change in each level of a teacher.

    Args:
        plain (Sequence[Tensor]): Levels of the plain teacher, each (B, C, H, W).
        prompted (Sequence[Tensor]): Levels of the prompted one for the first n images.
        image (np.ndarray): The first image (H, W, 3), RGB, 0 to 255.
        names (Sequence[str]): Names of the levels.

    Returns:
        Figure: Norms over channels for the first image; the energy that is kept is that of all n.
    """
    rows = [[x[0].float().norm(dim=0).cpu().numpy() for x in pair] for pair in zip(plain, prompted)]
    side = (_WIDTH - 1.8) / 4
    height = len(rows) * side * image.shape[0] / image.shape[1]
    with matplotlib.rc_context(_STYLE):
        figure = Figure((_WIDTH, height + 0.3 * len(rows) + 0.2), layout="constrained")
        axes = figure.subplots(len(rows), 4, squeeze=False)
        _show_map(axes[0, 0], image, image)
        for name, maps, line, *levels in zip(names, rows, axes, plain, prompted):
            line[0].set_axis_off()
            line[1].set_ylabel(name)
            top = np.max(maps)
            kept = energy_kept(levels[1], levels[0]).item()
            for axis, norms, title in zip(line[1:], maps, ("plain", "prompted")):
                norm_map = _show_map(axis, norms, image, cmap=_SEQUENTIAL, vmin=0, vmax=top)
                axis.set_title(title if title == "plain" else f"{title}, energy {kept:.0%}")
            figure.colorbar(norm_map, ax=line[2], label="norm")
            change = maps[1] - maps[0]
            limit = max(np.abs(change).max(), 0.05 * top)  # what is next to nothing stays pale
            drawn = _show_map(line[3], change, image, cmap=_DIVERGING, vmin=-limit, vmax=limit)
            line[3].set_title("prompted − plain")
            figure.colorbar(drawn, ax=line[3], label="difference")
    return figure


def draw_cka(matrices: Mapping[str, Tensor]) -> Figure:
    """Draw the similarity of the stages of a student to those of its teacher.

    Args:
        matrices (Mapping[str, Tensor]): CKA (S, T) of S stages of a student and T of the teacher,
            by the title of its panel.
    """
    shape = next(iter(matrices.values())).shape
    size = (_WIDTH / 2 * len(matrices), 0.5 * shape[0] + 0.8)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(size, layout="constrained")
        axes = figure.subplots(1, len(matrices), squeeze=False, sharey=True)[0]
        for axis, (title, matrix) in zip(axes, matrices.items()):
            drawn = axis.imshow(matrix, cmap=_SEQUENTIAL, vmin=0, vmax=1, aspect="auto")
            for (row, column), value in np.ndenumerate(matrix.numpy()):
                axis.text(
                    column, row, f"{value:.2f}", ha="center", va="center",
                    color="black" if value > 0.5 else "white",
                )  # fmt: skip
            axis.set_title(f"{title}: mean {matrix.mean():.2f}")
            axis.set_xlabel("stage of the teacher")
            axis.set_xticks(range(shape[1]), range(1, shape[1] + 1))
            axis.set_yticks(range(shape[0]), range(1, shape[0] + 1))
        axes[0].set_ylabel("stage of the student")
        figure.colorbar(drawn, ax=axes, label="linear CKA", pad=0.01)
    return figure


def render(figure: Figure) -> np.ndarray:
    """Render a figure as an image (H, W, 3), RGB, uint8."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def encode_png(figure: Figure) -> bytes:
    """Encode a figure as a PNG file."""
    file = io.BytesIO()
    Image.fromarray(render(figure)).save(file, format="png", optimize=True)
    return file.getvalue()


def _show_map(axis: Axes, values: np.ndarray, image: np.ndarray, **colors: Any) -> AxesImage:
    """Show a map (h, w) or (h, w, 3) in the frame of the image, without smoothing."""
    extent = (0, image.shape[1], image.shape[0], 0)
    drawn = axis.imshow(values, extent=extent, interpolation="nearest", **colors)
    axis.set(xticks=[], yticks=[])
    return drawn


def _mark_region(axis: Axes, region: tuple[int, int], grid: int, image: np.ndarray) -> None:
    """Draw the frame of a region."""
    height, width = image.shape[0] / grid, image.shape[1] / grid
    corner = (region[1] * width, region[0] * height)
    axis.add_patch(Rectangle(corner, width, height, fill=False, color=_MARK, linewidth=1.5))
