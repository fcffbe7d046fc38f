"""The ``pat-mmdet`` command: the tools of the project by name, from any folder.

``pat-mmdet train ARGUMENTS`` is ``python tools/train.py ARGUMENTS`` of a checkout.
"""

from __future__ import annotations

import argparse
import ast
import sys
from functools import partial
from importlib import import_module
from pathlib import Path

from pat_mmdet.utils.paths import PACKAGE, TOOLS
from pat_mmdet.version import __version__

# The links under tools/ are old names of folders.
FOLDERS = [
    PACKAGE / "cli",
    *sorted(path for path in TOOLS.iterdir() if path.is_dir() and not path.is_symlink()),
]


def find_commands() -> dict[str, tuple[Path, str]]:
    """Find the files that are commands: those that define ``main``.

    Returns:
        dict[str, tuple[Path, str]]: File and first line of its docstring, by the command's name.
    """
    commands = {}
    for folder in FOLDERS:
        for file in sorted(folder.glob("*.py")):
            code = ast.parse(file.read_text(encoding="utf-8"))
            is_command = any(getattr(node, "name", None) == "main" for node in code.body)
            if is_command and file.stem != "main":
                summary = (ast.get_docstring(code) or "").partition("\n")[0].replace("``", "")
                commands[file.stem.replace("_", "-")] = (file, summary)
    return commands


def main() -> None:
    """Run the command that the first argument names; it reads the other arguments."""
    commands = find_commands()
    parser = argparse.ArgumentParser(
        prog="pat-mmdet",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=30),
        description="Distil detectors and classifiers. 'pat-mmdet COMMAND --help' explains a "
        "command. Configs of the project need no path: pat/swin_t-res18_coco.py.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    choices = parser.add_subparsers(
        title="commands", dest="command", metavar="COMMAND", required=True
    )
    for name, (_, summary) in commands.items():
        choices.add_parser(name, help=summary.replace("%", "%%"), add_help=False)
    command = parser.parse_args(sys.argv[1:2]).command

    file = commands[command][0]
    sys.argv = [f"{parser.prog} {command}", *sys.argv[2:]]
    if file.parent == PACKAGE / "cli":
        module = import_module(f"pat_mmdet.cli.{file.stem}")
    else:
        sys.path.insert(0, str(file.parent))  # as Python does for a script
        module = import_module(file.stem)
    module.main()
