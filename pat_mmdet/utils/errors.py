"""Errors of the user's input, shown without a traceback."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mmengine.runner.loops

from pat_mmdet.utils.paths import PACKAGE, TOOLS

_OWN_FOLDERS = (PACKAGE, TOOLS)
_LOOPS = {Path(mmengine.runner.loops.__file__), PACKAGE / "engine" / "runner" / "loops.py"}


class ConfigError(ValueError):
    """A config that contradicts itself, or that names what does not exist."""


@contextmanager
def clear_errors(show_traceback: bool = False) -> Iterator[None]:
    """End the program with one line for an error of the input.

    An error that this project raised on purpose is shown as it is. Registries wrap what goes wrong
    while they build; the first error says what it was. What other libraries raise before the first
    step comes from a value of the config as a rule: it is shown by its first line, and how to see
    the rest. Once a loop runs, errors of others keep their traceback.

    Args:
        show_traceback (bool): Whether every error keeps its traceback, as ``--traceback`` asks.
    """
    try:
        yield
    except Exception as error:
        first: BaseException = error
        while first.__context__ is not None and not first.__suppress_context__:
            first = first.__context__
        files = [Path(frame.filename).resolve() for frame in traceback.extract_tb(error.__traceback__)]
        origin = Path(traceback.extract_tb(first.__traceback__)[-1].filename).resolve()
        own = isinstance(first, (FileNotFoundError, ValueError)) and any(
            folder in origin.parents for folder in _OWN_FOLDERS
        )
        if show_traceback or not (own or _LOOPS.isdisjoint(files)):
            raise
        if own:
            sys.exit(f"error: {first}")
        line = next(iter(str(first).strip().splitlines()), "")
        sys.exit(
            f"error: {type(first).__name__}: {line[:300]} (in {origin.name}; --traceback shows more)"
        )
