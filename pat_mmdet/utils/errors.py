"""Errors of the user's input, shown without a traceback."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pat_mmdet.utils.paths import PACKAGE, TOOLS

_OWN_FOLDERS = (PACKAGE, TOOLS)


@contextmanager
def clear_errors() -> Iterator[None]:
    """Ends the program with one line for an error that this project raised on purpose.

    Registries wrap what goes wrong while they build; the first error says what it was. Anything
    raised elsewhere keeps its traceback.
    """
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        first: BaseException = error
        while first.__context__ is not None and not first.__suppress_context__:
            first = first.__context__
        origin = Path(traceback.extract_tb(first.__traceback__)[-1].filename).resolve()
        if not any(folder in origin.parents for folder in _OWN_FOLDERS):
            raise
        sys.exit(f"error: {first}")
