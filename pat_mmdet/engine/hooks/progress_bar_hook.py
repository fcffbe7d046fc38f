"""A progress bar for people at a terminal."""

from __future__ import annotations

import atexit
import os
import resource
import sys
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any

import torch
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

_PERIOD = 0.2  # seconds from one refresh to the next


class _Bars(Progress):
    """Bars with a line of text below.

    Attributes:
        status (str): The text.
    """

    status = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        """Yield the bars and the text."""
        yield self.make_tasks_table(self.tasks)
        if self.status:
            yield Text(self.status, style="dim")


@HOOKS.register_module()
class ProgressBarHook(Hook):
    """Show the progress of training, validation and test below the log lines of a terminal.

    The bar has iterations, rate and remaining time, and below it the total loss with its parts (the
    student's own, ``task``, and each of the method's) and the peak memory. Losses, rate and time
    are averages over the window of the log lines.

    Log lines, warnings and all that is printed appear above the bar; log files are the same with
    it. Nothing is shown in processes but the main one, and where nobody can see it: standard output
    is no terminal, or a dumb one (``TERM=dumb``), or the environment has ``CI`` or
    ``TTY_INTERACTIVE=0``. ``default_hooks.progress=None`` takes the bar away.

    A tool that calls ``on_exit`` of the hooks when a run ends, also by an error, has what it prints
    then below the bar.
    """

    # After all hooks that log what came out of an iteration.
    priority = "LOWEST"

    def __init__(self) -> None:
        self._bars: _Bars | None = None
        self._tasks: dict[str, TaskID] = {}
        self._streams: list[tuple] = []
        self._method_losses: list[str] = []
        self._last_refresh = 0.0

    def before_train(self, runner: Runner) -> None:
        """Show the bar of the training, and find the names of the method's losses."""
        self._begin(runner, "train", runner.max_iters, runner.iter)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if self._bars is not None and hasattr(model, "distill"):

            def remember(module: torch.nn.Module, args: tuple, losses: dict) -> None:
                self._method_losses = list(losses)
                handle.remove()

            handle = model.distill.register_forward_hook(remember)

    def after_train(self, runner: Runner) -> None:
        """Leave the bar as it is."""
        self._end("train")

    def _before_epoch(self, runner: Runner, mode: str = "train") -> None:
        """Add a bar for a validation or a test."""
        if mode != "train":
            self._begin(runner, mode, _num_batches(runner, mode))

    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: Any = None,
        mode: str = "train",
    ) -> None:
        """Show the iteration, in training with its losses."""
        if mode == "train":
            completed, total = runner.iter + 1, runner.max_iters
        else:
            completed, total = batch_idx + 1, _num_batches(runner, mode)
        if not self._is_due(completed == total):
            return
        if mode == "train":
            self._bars.status = f"{self._describe_losses(runner, outputs or {})}{_peak_memory()}"
        self._update(runner, mode, completed)

    def _after_epoch(self, runner: Runner, mode: str = "train") -> None:
        """Take the bar of a validation away, and leave that of a test as it is."""
        if mode != "train":
            self._end(mode)

    def on_exit(self, runner: Runner) -> None:
        """Give the terminal back, also after an error."""
        self._stop()

    def _begin(self, runner: Runner, mode: str, total: int, completed: int = 0) -> None:
        """Add a bar, and take hold of the terminal for the first one."""
        if self._bars is None:
            # Text of others is no markup.
            console = Console(markup=False, emoji=False, highlight=False)
            if not (is_main_process() and _is_watched(console)):
                return
            self._start(runner, console)
        self._tasks[mode] = self._bars.add_task(
            mode, total=total, completed=completed, rate="", eta=""
        )
        self._bars.refresh()

    def _start(self, runner: Runner, console: Console) -> None:
        """Show the bars, and have the log printed above them."""
        self._bars = _Bars(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TextColumn("{task.fields[eta]}"),
            console=console,
            expand=True,
            # A thread might hold the console's lock while data loader workers are forked, which
            # then could not print.
            auto_refresh=False,
            redirect_stderr=sys.stderr.isatty(),
        )
        # Handlers keep the stream that was there when they were made.
        self._streams = [
            (handler, handler.stream)
            for handler in runner.logger.handlers
            if getattr(handler, "stream", None) is sys.stdout
        ]
        self._bars.start()
        console.show_cursor()  # also there if the process is killed
        for handler, _ in self._streams:
            handler.setStream(sys.stdout)
        atexit.register(self._stop)  # for programs that do not call on_exit

    def _is_due(self, is_last: bool) -> bool:
        """Return True if there are bars, and the last refresh is long ago."""
        if self._bars is None:
            return False
        now = time.monotonic()
        if now - self._last_refresh < _PERIOD and not is_last:
            return False
        self._last_refresh = now
        return True

    def _update(self, runner: Runner, mode: str, completed: int) -> None:
        """Show how far a loop is; rate and time are those that IterTimerHook has measured."""
        fields: dict[str, Any] = {}
        seconds = _average(runner, f"{mode}/time")
        if seconds:
            fields["rate"] = f"{1 / seconds:.1f} it/s" if seconds < 1 else f"{seconds:.1f} s/it"
            fields["eta"] = f"ETA {timedelta(seconds=round(runner.message_hub.get_info('eta')))}"
        name = mode
        if mode == "train" and isinstance(runner.train_loop, EpochBasedTrainLoop):
            name = f"epoch {runner.epoch + 1}/{runner.max_epochs}"
        self._bars.update(self._tasks[mode], completed=completed, description=name, **fields)
        self._bars.refresh()

    def _describe_losses(self, runner: Runner, outputs: dict[str, Any]) -> str:
        """Return the total loss and its parts."""
        losses = {key: _average(runner, f"train/{key}") for key in outputs if "loss" in key}
        if not losses:
            return ""
        method = {key: losses.pop(key) for key in self._method_losses if key in losses}
        parts = {"loss": losses.pop("loss")}
        if method:
            parts |= {"task": sum(losses.values()), **method}
        return "".join(f"{key.replace('loss_', '')} {parts[key]:.3f}  " for key in parts)

    def _end(self, mode: str) -> None:
        """Take a bar away; the last one stays on the screen."""
        if self._bars is None:
            return
        if len(self._tasks) == 1:
            self._stop()
        else:
            self._bars.remove_task(self._tasks.pop(mode))
            self._bars.refresh()

    def _stop(self) -> None:
        """Leave the bars as they are, and print as before."""
        if self._bars is None:
            return
        for handler, stream in self._streams:
            handler.setStream(stream)
        for stream in (sys.stdout, sys.stderr):
            stream.flush()  # lines that were begun
        self._bars.stop()
        self._bars = None
        self._tasks = {}
        atexit.unregister(self._stop)


def _num_batches(runner: Runner, mode: str) -> int:
    """Return the length of a validation or a test."""
    return len(runner.val_dataloader if mode == "val" else runner.test_dataloader)


def _is_watched(console: Console) -> bool:
    """Return True if somebody may see the console."""
    return sys.stdout.isatty() and console.is_interactive and "CI" not in os.environ


def _average(runner: Runner, name: str) -> float:
    """Return the average of a logged value over the window of the log; 0 if there is none."""
    history = runner.message_hub.log_scalars.get(name)
    return 0.0 if history is None else float(history.mean(runner.log_processor.window_size))


def _peak_memory() -> str:
    """Return the peak memory: that of the GPU since the last log line, or of the process."""
    if torch.cuda.is_available():
        return f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB GPU"
    kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"{kibibytes / 2**20:.1f} GiB"
