"""Command-line arguments that the tools share."""

import argparse
import os

from mmengine.config import DictAction

from pat_mmdet.utils.config import SETTINGS


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options`` and ``--traceback``."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=DictAction,
        help="override settings of the config, as key=value; nested keys with dots, "
        'lists as key="[a,b]" without blanks',
    )
    add_traceback(parser)


def add_traceback(parser: argparse.ArgumentParser) -> None:
    """Add ``--traceback``, which :func:`pat_mmdet.utils.errors.clear_errors` takes."""
    parser.add_argument(
        "--traceback", action="store_true", help="show the traceback of an error, not one line"
    )


def add_method(parser: argparse.ArgumentParser) -> None:
    """Add ``--method`` and ``--settings``."""
    parser.add_argument(
        "--method",
        help="distillation method in place of the config's: a name in configs/_base_/methods, "
        "'none' for the student alone",
    )
    parser.add_argument(
        "--settings",
        choices=list(SETTINGS),
        help="'equal' (default) trains all methods alike, 'published' each with the iterations and "
        "rates of its published run",
    )


def add_launcher(parser: argparse.ArgumentParser) -> None:
    """Add ``--launcher``, and ``--local_rank`` as launchers pass it."""
    parser.add_argument("--launcher", choices=["none", "pytorch", "slurm", "mpi"], default="none")
    parser.add_argument("--local_rank", "--local-rank", type=int, default=0)


def set_local_rank(args: argparse.Namespace) -> None:
    """Leave the local rank in the environment, where mmengine looks for it."""
    os.environ.setdefault("LOCAL_RANK", str(args.local_rank))
