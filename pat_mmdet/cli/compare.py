"""Compare a teacher and its students on one page: images, metrics by class, curves.

Example:
    pat-mmdet compare configs/pat/swin_p-res18_digits.py alone=work_dirs/none PAT=work_dirs/pat

The page is one HTML file that needs nothing else. It begins with the images on which the first
network (the teacher) is right and the last one wrong.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config

from pat_mmdet.cli.arguments import add_cfg_options
from pat_mmdet.cli.export import find_dataset_meta
from pat_mmdet.utils import (
    is_distiller,
    load_config,
    prepare_environment,
    student_model,
    teacher_model,
)
from pat_mmdet.utils.config_text import parse_config_text
from pat_mmdet.utils.errors import clear_errors

if TYPE_CHECKING:
    from pat_mmdet.visualization import Network


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config with the test set and, of a distiller, the teacher")
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="[NAME=]RUN",
        help="work dir of a training (its newest checkpoint is taken), or checkpoint",
    )
    parser.add_argument("--no-teacher", action="store_true", help="leave the teacher out")
    parser.add_argument(
        "--num-images",
        type=int,
        default=100,
        help="images in the page: those on which the first and the last network differ most "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("compare.html"), help="default: %(default)s"
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.num_images < 1:
        parser.error("--num-images must be at least 1")
    if args.out.suffix != ".html":
        parser.error("--out must end with .html")
    return args


def find_teacher(cfg: Config) -> Network:
    """Return the teacher of a distiller.

    Raises:
        ValueError: If it has no checkpoint.
    """
    from pat_mmdet.visualization import Network

    checkpoint = cfg.model.teacher_checkpoint
    model = teacher_model(cfg.model.teacher, checkpoint)
    if checkpoint is None and not model.get("pretrained"):
        raise ValueError("model.teacher_checkpoint is None; set it, or give --no-teacher")
    return Network("teacher", model, checkpoint, Path(checkpoint).parent if checkpoint else None)


def find_student(run: str, cfg: Config) -> Network:
    """Return the student of a training.

    Args:
        run (str): Work dir or checkpoint, with ``NAME=`` before it or not.
        cfg (Config): Config with the student's model for a checkpoint without a config inside.

    Raises:
        FileNotFoundError: If there is no such run, or it has no checkpoint.
        ValueError: If the checkpoint cannot be read, or is for other classes.
    """
    from pat_mmdet.utils import read_checkpoint
    from pat_mmdet.utils.resume import find_checkpoint
    from pat_mmdet.visualization import Network

    has_name = "=" in run and not os.path.exists(run)
    name, _, path = run.partition("=") if has_name else ("", "", run)
    checkpoint = find_checkpoint(path)
    meta = read_checkpoint(checkpoint).get("meta")
    meta = meta if isinstance(meta, dict) else {}
    tested = find_dataset_meta(cfg, meta=None).get("classes", ())
    trained = find_dataset_meta(cfg, meta).get("classes", ())
    if tested and list(tested) != list(trained):
        raise ValueError(
            f"checkpoint {checkpoint!r} is for {_list(trained)}, the test set of "
            f"{cfg.filename!r} has {_list(tested)}"
        )
    text = meta.get("cfg")
    model = student_model(parse_config_text(text) if isinstance(text, str) else cfg)
    name = name or Path(path).stem
    return Network(name, model, checkpoint, Path(checkpoint).parent)


def _list(classes: Sequence[str]) -> str:
    """Format the number of classes and the first ones."""
    names = ", ".join(classes[:5])
    return f"{len(classes)} classes ({names}{', …' if len(classes) > 5 else ''})"


def compare(
    config: str | os.PathLike,
    runs: Sequence[str],
    out: str | os.PathLike = "compare.html",
    num_images: int = 100,
    with_teacher: bool = True,
    cfg_options: dict[str, Any] | None = None,
) -> None:
    """Evaluate the teacher of a config and trained students, and write a page that compares them.

    Args:
        config (str | os.PathLike): Config with the test set and, of a distiller, the teacher.
        runs (Sequence[str]): Work dirs of trainings or checkpoints, as ``'NAME=RUN'`` or ``'RUN'``.
        out (str | os.PathLike): The page (.html).
        num_images (int): How many images it has at most.
        with_teacher (bool): Whether the teacher of a distiller is compared, too.
        cfg_options (dict, optional): Values by dotted key.

    Raises:
        FileNotFoundError: If there is no such config or run.
        ValueError: If a run does not fit the test set, or two have the same name.
    """
    from mmengine.registry import init_default_scope

    from pat_mmdet.utils import check_data
    from pat_mmdet.visualization import compare as write_page

    cfg = load_config(config, cfg_options)
    check_data(cfg, "test")
    prepare_environment(cfg, "none")
    init_default_scope(cfg.get("default_scope", "mmdet"))
    networks = [find_student(run, cfg) for run in runs]
    if is_distiller(cfg) and with_teacher:
        networks.insert(0, find_teacher(cfg))
    names = [network.name for network in networks]
    if len(set(names)) < len(names):
        raise ValueError(f"two networks have the same name in {names}; give NAME=RUN")
    write_page(cfg, networks, num_images, Path(out), title=Path(config).stem)


def main() -> None:
    """Compare as the command line says."""
    args = parse_args()
    with clear_errors(args.traceback):
        compare(
            args.config, args.runs, args.out, args.num_images, not args.no_teacher, args.cfg_options
        )
    print(f"page: {args.out} ({args.out.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
