"""The progress bar, in a pseudo-terminal."""

import fcntl
import os
import pty
import re
import signal
import struct
import sys
import termios
from types import SimpleNamespace

import pytest
from helpers.toy import Toy, runner

from pat_mmdet.engine.hooks import ProgressBarHook

CONTROL = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|\r|\n")


class Failing(Toy):
    """Prints in each step, and may fail in the fourth."""

    error = None

    def forward(self, inputs, mode="tensor"):
        if mode == "loss":
            self.steps = getattr(self, "steps", 0) + 1
            print(f"[printed] [/in] step {self.steps}")
            if self.steps == 4 and self.error is not None:
                raise self.error
        return super().forward(inputs, mode)


def train(folder, error):
    """Train as tools/train.py does, in the child process; return its exit code."""
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1) for fd in (1, 2))
    made = runner(folder, hooks=[dict(type="ProgressBarHook")])
    made.model.__class__, made.model.error = Failing, error
    try:
        try:
            made.train()
        finally:
            made.call_hook("on_exit")
    except BaseException as caught:
        print(f"error: {caught}", file=sys.stderr)
        return 3
    print("finished")
    return 0


def run(folder, columns=100, error=None, **env):
    """Train in a terminal of so many columns; return the exit code and all that was written."""
    pid, terminal = pty.fork()
    if pid == 0:
        code = 99
        try:
            signal.alarm(60)
            fcntl.ioctl(1, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
            for name in ("CI", "COLUMNS", "LINES", "NO_COLOR", "TTY_INTERACTIVE"):
                os.environ.pop(name, None)
            os.environ.update({"TERM": "xterm", **env})
            code = train(folder, error)
        finally:
            os._exit(code)
    written = b""
    while True:
        try:
            block = os.read(terminal, 4096)
        except OSError:  # the child has closed it
            break
        if not block:
            break
        written += block
    os.close(terminal)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), written.decode()


def screen(written):
    """The lines that a terminal shows in the end."""
    lines, row, column, end = [""], 0, 0, 0
    for match in [*CONTROL.finditer(written), None]:
        text = written[end : match.start() if match else None]
        lines[row] = lines[row][:column].ljust(column) + text + lines[row][column + len(text) :]
        column += len(text)
        if match is None:
            break
        end = match.end()
        if match[0] == "\r":
            column = 0
        elif match[0] == "\n":
            row += 1
            lines += [""] * (row == len(lines))
        elif match[2] == "A":
            row -= int(match[1] or 1)
        elif match[2] == "K":
            lines[row] = ""
    return [line.rstrip() for line in lines if line.strip()]


def logged(folder):
    """The messages of the log file."""
    text = next(folder.glob("*/*.log")).read_text()
    assert "\x1b" not in text and "━" not in text
    return [line.partition("INFO - ")[2] for line in text.splitlines() if "Iter(" in line]


@pytest.mark.parametrize("columns", [200, 60])
def test_lines_appear_above_the_bar(columns, tmp_path):
    code, written = run(tmp_path, columns)
    shown = screen(written)
    assert code == 0 and shown[-1] == "finished"
    assert max(map(len, shown[-3:])) <= columns
    assert re.match(r"train ━+ 6/6 .*(it/s|s/it) ETA 0:00:00$", shown[-3]), shown[-3]
    assert re.match(r"loss \d+\.\d{3}  \d+\.\d GiB", shown[-2]), shown[-2]
    assert not any("━" in line for line in shown[:-3])  # no bar is left behind
    everything = "".join("".join(shown).split())
    messages = logged(tmp_path)
    assert len(messages) > 6
    for line in [*messages, *(f"[printed] [/in] step {i}" for i in range(1, 7))]:
        assert everything.count("".join(line.split())) >= 1, line
    assert re.search(r"val +(\x1b\[[\d;]*m)*━", written)
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt("stopped")])
def test_errors_come_after_the_bar(error, tmp_path):
    code, written = run(tmp_path, error=error)
    *_, bar, losses, last = screen(written)
    assert code == 3 and last == f"error: {error}"
    assert re.search(r" [1-3]/6 ", bar) and losses.startswith("loss ")
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


@pytest.mark.parametrize("env", [dict(TERM="dumb"), dict(CI="true"), dict(TTY_INTERACTIVE="0")])
def test_plain_lines(env, tmp_path):
    code, written = run(tmp_path, **env)
    assert code == 0 and "━" not in written and "\x1b[?25" not in written
    assert all(line in written for line in logged(tmp_path))


def test_parts_of_the_loss():
    values = dict(loss=6.75, loss_cls=0.5, loss_bbox=0.25, loss_kd=2.0, loss_fd=4.0, acc=90.0)

    class Mean(float):
        def mean(self, window):
            return self

    state = SimpleNamespace(
        message_hub=SimpleNamespace(
            log_scalars={f"train/{name}": Mean(value) for name, value in values.items()}
        ),
        log_processor=SimpleNamespace(window_size=10),
    )
    hook = ProgressBarHook()
    assert hook._describe_losses(state, {}) == ""
    assert hook._describe_losses(state, values) == "loss 6.750  "
    hook._method_losses = ["loss_fd", "loss_kd"]
    text = "loss 6.750  task 0.750  fd 4.000  kd 2.000  "
    assert hook._describe_losses(state, values) == text
