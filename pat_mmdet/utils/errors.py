"""Errors of the user's input, shown without a traceback."""

from __future__ import annotations

import errno
import os
import pickle
import re
import select
import signal
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError

from pat_mmdet.utils.paths import PACKAGE, TOOLS

_OWN_FOLDERS = (PACKAGE, TOOLS)
# What torch says when a process that a run needs is gone, and what it means.
_DEATHS = {
    r"DataLoader worker \(pid": "a data loader worker was killed, by hand or for want of memory",
    r"DataLoader timed out": "a data loader worker gave no batch within the timeout of the loader",
    r"gloo.*Timed out": "another process did not answer within env_cfg.dist_cfg.timeout",
    r"gloo.*(Connection|Broken pipe|error)": "another process of this run ended",
}
_OWN_ERRORS = (FileNotFoundError, FloatingPointError, ValueError)


class ConfigError(ValueError):
    """A config that contradicts itself, or names what does not exist."""


@contextmanager
def clear_errors(show_traceback: bool = False) -> Iterator[None]:
    """End the program with one line for an error of the input.

    An error that this project raised on purpose is shown as it is. Registries wrap what goes wrong
    while they build; the first error says what it was. What others raise before the first step is
    due to a value of the config as a rule: its first line is shown, and how to see the rest. From
    the first step on, such errors keep their traceback, but for those about a process that died or
    a full disk. What torch's safe loading refuses is said without its advice to switch that off.
    Where nobody reads the output any more, as after ``| head``, the program ends without a word
    and with the exit code of a shell for SIGPIPE. Ctrl-C ends it with that for SIGINT, and in a
    training with how to go on.

    Args:
        show_traceback (bool): Whether every error keeps its traceback, as ``--traceback`` asks.
    """
    try:
        yield
        sys.stdout.flush()  # here, as an error at the exit of the interpreter cannot be caught
    except KeyboardInterrupt as interrupt:
        if show_traceback:
            raise
        hint = "; --resume goes on from the last checkpoint" if _in_training(interrupt) else ""
        print(f"stopped{hint}", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_output_closed():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # for what is still in the buffer
            sys.exit(128 + signal.SIGPIPE)
        if isinstance(error, (ConnectionError, EOFError)):
            # A worker may have died, about which torch raises another error when it is signalled.
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        chain: list[BaseException] = [error]
        while chain[-1].__context__ is not None and not chain[-1].__suppress_context__:
            chain.append(chain[-1].__context__)
        first = chain[-1]
        frames = traceback.extract_tb(first.__traceback__)
        origin = Path(frames[-1].filename).resolve()
        own = isinstance(first, _OWN_ERRORS) and any(
            folder in origin.parents for folder in _OWN_FOLDERS
        )
        known = _full_disk(first) or _refused_objects(first) or _dead_process(chain)
        if show_traceback or not (own or known or _before_training(error)):
            raise
        if own or known:
            sys.exit(f"error: {known or first}")
        # An assertion may have no message, but its code.
        message = str(first).strip() or frames[-1].line or ""
        line = next(iter(message.splitlines()), "")[:300]
        if source := _resumed_file(error):
            sys.exit(
                f"error: checkpoint {source!r} cannot be resumed from ({type(first).__name__}: "
                f"{line}); it is no whole checkpoint of this training, take an earlier one"
            )
        url = f" at {_local_text(error, 'url')!r}" if isinstance(error, URLError) else ""
        sys.exit(f"error: {type(first).__name__}{url}: {line} (--traceback shows where)")


def _is_output_closed() -> bool:
    """Return True if the standard output is a pipe that nobody reads any more."""
    output = select.poll()
    output.register(1, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0))


def _in_training(error: BaseException) -> bool:
    """Return True if an error was raised while MMEngine's runner was training."""
    return any(
        Path(frame.filename).name == "runner.py" and frame.name == "train"
        for frame in traceback.extract_tb(error.__traceback__)
    )


def _before_training(error: BaseException) -> bool:
    """Return True if an error was not raised inside a training or test loop."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    return not any(file.parts[-2:] == ("runner", "loops.py") for file in files)


def _resumed_file(error: BaseException) -> str | None:
    """Return the checkpoint that MMEngine was resuming from when an error was raised."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name == "resume" and "filename" in frame.f_locals:
            return frame.f_locals["filename"]
    return None


def _full_disk(error: BaseException) -> str | None:
    """Return what to do about an error for want of space; None for other errors."""
    if not isinstance(error, OSError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    file = repr(error.filename) if error.filename else "a file"
    return f"no space left to write {file}; free some, then go on with --resume"


def _refused_objects(error: BaseException) -> str | None:
    """Return what torch's safe loading refused; None for other errors."""
    error = error.__cause__ or error  # timm words it anew
    if not isinstance(error, pickle.UnpicklingError):
        return None
    found = re.search(r"GLOBAL [\w.]+", str(error))
    # As timm, mmengine and torch name the file.
    names = ("checkpoint_path", "filename", "f")
    source = next(filter(None, (_local_text(error, name) for name in names)), "")
    return (
        f"checkpoint {source!r} is refused: it holds pickled Python objects, which could run "
        f"foreign code{f' ({found.group()})' if found else ''}. Ask for a file with weights alone"
    )


def _dead_process(chain: list[BaseException]) -> str | None:
    """Return which process died, if one of the errors says so; None for other errors.

    torch says it while it handles whatever came first, and not at all if it was fetching a tensor
    from the worker.
    """
    for error in chain:
        line = next(iter(str(error).strip().splitlines()), "")[:300]
        if isinstance(error, (ConnectionError, EOFError)) and _is_fetching(error):
            line = f"DataLoader worker (pid unknown): {line or type(error).__name__}"
        for pattern, meaning in _DEATHS.items():
            if re.search(pattern, line):
                return f"{meaning} ({line}); --resume continues the training"
    return None


def _is_fetching(error: BaseException) -> bool:
    """Return True if an error was raised while torch fetched a batch from its workers."""
    files = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    return any(file.parts[-3:] == ("utils", "data", "dataloader.py") for file in files)


def _local_text(error: BaseException, name: str) -> str | None:
    """Return the text that a variable has in the outermost function that has one."""
    for frame, _ in traceback.walk_tb(error.__traceback__):
        value = frame.f_locals.get(name)
        if isinstance(value, (str, Path)):
            return str(value)
    return None
