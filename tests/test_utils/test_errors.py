import importlib.util
import signal
import subprocess
import sys
from urllib.error import URLError

import pytest
import timm
import torch
from helpers.detectors import PAIR
from helpers.tools import ROOT
from mmengine.registry import MODELS, Registry, init_default_scope

from pat_mmdet.registry import build_method
from pat_mmdet.utils import load_config
from pat_mmdet.utils.errors import clear_errors


def ends_with(function):
    """The line that a tool ends with."""
    with pytest.raises(SystemExit) as stop, clear_errors():
        function()
    return stop.value.code


def test_our_errors_end_in_one_line():
    line = ends_with(lambda: load_config("nowhere.py"))
    assert line.startswith("error: config 'nowhere.py' does not exist") and "\n" not in line
    line = ends_with(lambda: build_method(dict(type="PTA")))
    assert line.startswith("error: unknown distillation method 'PTA'; known methods: ")


@pytest.mark.parametrize("flags", [(), ("-u",)], ids=["buffered", "unbuffered"])
def test_closed_pipe_ends_quietly(flags):
    code = (
        "from pat_mmdet.utils.errors import clear_errors\n"
        "with clear_errors():\n"
        "    print('first', flush=True); input(); print('second')\n"
    )
    with subprocess.Popen(
        [sys.executable, *flags, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, cwd=ROOT,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdin.write("\n")
        process.stdin.close()
        assert process.stderr.read() == ""
    assert process.returncode == 141


def test_errors_from_a_registry():
    registry = Registry("things", scope="pat_mmdet")

    @registry.register_module()
    class Thing:
        def __init__(self):
            load_config("nowhere.py")

    @registry.register_module()
    def wrapped():
        # As registries of older MMEngine versions do.
        try:
            Thing()
        except Exception as error:
            raise type(error)(f"class `Thing` in tests.py: {error}")  # noqa: B904

    expected = ends_with(lambda: load_config("nowhere.py"))
    assert ends_with(lambda: registry.build(dict(type="Thing"))) == expected
    assert ends_with(lambda: registry.build(dict(type="wrapped"))) == expected


def test_error_about_a_library_error(tmp_path):
    path = tmp_path / "cut.pth"
    path.write_bytes(b"")
    cfg = load_config(
        str(ROOT / PAIR),
        {"model.teacher_checkpoint": str(path), "model.method.input_size": (64, 64)},
    )

    def build():
        init_default_scope("mmdet")
        MODELS.build(cfg.model)

    assert ends_with(build).startswith(f"error: checkpoint {str(path)!r} (0 bytes) cannot be read")


def fail(error):
    raise error


@pytest.mark.parametrize("error", [ValueError("theirs\nmore"), KeyError("a"), RuntimeError()])
def test_library_errors(error):
    line = ends_with(lambda: fail(error))
    first = str(error).partition("\n")[0] or "raise error"  # code of an error without a message
    assert line == f"error: {type(error).__name__}: {first} (--traceback shows where)"
    with pytest.raises(type(error)) as caught, clear_errors(show_traceback=True):
        fail(error)
    assert caught.value is error


def test_failed_download_names_url():
    def download(url):
        try:
            raise OSError("Name or service not known")
        except OSError as error:
            raise URLError(f"{error} ({len(url)})")  # noqa: B904  (as urllib does)

    line = ends_with(lambda: download("https://host/a.pth"))
    assert line.startswith("error: OSError at 'https://host/a.pth': Name or service not known")


def caller(path, name="run"):
    """A function in a file of that path, which calls another."""
    path.parent.mkdir(parents=True)
    path.write_text(f"def {name}(step):\n    step()\n")
    spec = importlib.util.spec_from_file_location("caller", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return getattr(module, name)


@pytest.fixture
def loop(tmp_path):
    """A function that is where mmengine's loops are."""
    return caller(tmp_path / "runner/loops.py")


@pytest.mark.parametrize(
    "text", ["out of memory", "Caught KeyError in DataLoader worker process 0."]
)
def test_errors_inside_a_loop(text, loop):
    with pytest.raises(RuntimeError), clear_errors():
        loop(lambda: fail(RuntimeError(text)))
    # What this project says about its input is one line there as well.
    assert ends_with(lambda: loop(lambda: load_config("nowhere.py"))).startswith("error: con")


def test_interrupt_says_how_to_go_on(tmp_path, capsys):
    def interrupt():
        raise KeyboardInterrupt

    assert ends_with(interrupt) == 130
    assert capsys.readouterr().err == "stopped\n"
    train = caller(tmp_path / "runner/runner.py", "train")
    assert ends_with(lambda: train(interrupt)) == 130
    assert capsys.readouterr().err == "stopped; --resume goes on from the last checkpoint\n"
    with pytest.raises(KeyboardInterrupt), clear_errors(show_traceback=True):
        interrupt()


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("DataLoader worker (pid 7) is killed by signal: Killed. ", "a data loader worker was ki"),
        ("DataLoader worker (pid(s) 7) exited unexpectedly", "a data loader worker was killed"),
        ("DataLoader timed out after 5 seconds", "a data loader worker gave no batch"),
        ("[/gloo/pair.cc:538] Read error [::1]:2: Connection reset by peer", "another process of"),
        ("[/gloo/buffer.cc:78] Timed out waiting 8000ms for recv", "another process did not ans"),
    ],
)
def test_dead_processes(text, meaning, loop):
    line = ends_with(lambda: loop(lambda: fail(RuntimeError(text))))
    assert line.startswith(f"error: {meaning}") and text.strip() in line and "--resume" in line


def test_worker_dies_while_a_tensor_is_fetched(loop, tmp_path):
    fetch = caller(tmp_path / "torch/utils/data/dataloader.py")
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        error = ConnectionResetError(104, "Connection reset by peer")
        line = ends_with(lambda: loop(lambda: fetch(lambda: fail(error))))
    finally:
        signal.signal(signal.SIGCHLD, handler)
    assert line.startswith("error: a data loader worker was killed") and "reset by peer" in line


def test_no_error_no_exit():
    with clear_errors():
        value = 3
    assert value == 3


class Foreign:
    def __reduce__(self):
        return print, ("foreign code ran",)


def test_refused_objects(tmp_path, capsys):
    """Also by timm, whose own message and torch's tell how to run what is in the file."""
    path = tmp_path / "foreign.pth"
    torch.save({"state_dict": {"weight": Foreign()}}, path)
    name, options = "resnet18", dict(pretrained=False, checkpoint_path=str(path))
    for load in (
        lambda: torch.load(path),
        lambda: timm.create_model(name, **options),
        lambda: MODELS.build(dict(type="mmpretrain.TimmClassifier", model_name=name, **options)),
    ):
        line = ends_with(load)
        assert line.startswith(f"error: checkpoint {str(path)!r} is refused: it holds pickled")
        assert "(GLOBAL print)" in line
        assert "\n" not in line and "weights_only" not in line
    assert "foreign code ran" not in capsys.readouterr().out


def test_content_that_cannot_be_resumed():
    def resume(filename):
        [].state_dict()

    message = "checkpoint 'a.pth' cannot be resumed from .AttributeError: 'list'"
    with pytest.raises(SystemExit, match=message), clear_errors():
        resume("a.pth")
