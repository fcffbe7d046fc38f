"""Command-line arguments that the tools share."""

import argparse
import os
from typing import Any

from mmengine.config import DictAction

from pat_mmdet.utils.config import SETTINGS


class CfgOptions(DictAction):
    """``--cfg-options``, where values that cannot be read end in a usage error."""

    def __call__(self, parser: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        """Parse the values."""
        try:
            super().__call__(parser, *args, **kwargs)
        except (AssertionError, RecursionError, ValueError):
            parser.error(
                "--cfg-options takes key=value, with values such as 0.1, name, [1,2] or (a,b) "
                "without blanks; a dict inside of a list belongs into the config"
            )


def add_cfg_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--cfg-options`` and ``--traceback``."""
    parser.add_argument(
        "--cfg-options",
        nargs="+",
        action=CfgOptions,
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
