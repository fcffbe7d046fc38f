"""Running the tools as a user does."""

import importlib.util
import multiprocessing
import os
import runpy
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Importing the libraries takes most of a short run: a server does it once and forks each run.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["pat_mmdet", "mmdet.apis", "mmpretrain.models", "timm", "torch._dynamo", "matplotlib.pyplot"]
)


def free_port():
    """A port that no other test of this machine uses at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def _run_main(path, args, cwd, env, output):
    """Run a script as ``python path args`` does, its output appended to a file."""
    with open(output, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(1, 2)
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.argv = [path, *args]
    paths = env.get("PYTHONPATH", "").split(os.pathsep)
    sys.path[:0] = [os.path.dirname(path), *filter(None, paths)]
    runpy.run_path(path, run_name="__main__")


def _run_forks(path, args, cwd, env, output, processes):
    """Run a script in forks of the server and return their exit codes."""
    group = dict(MASTER_ADDR="127.0.0.1", MASTER_PORT=free_port(), WORLD_SIZE=str(processes))
    started = []
    for rank in map(str, range(processes)):
        own = {**env, **group, "RANK": rank, "LOCAL_RANK": rank} if processes > 1 else env
        started.append(_CONTEXT.Process(target=_run_main, args=(path, args, cwd, own, output)))
        started[-1].start()
    for process in started:
        process.join()
    return {process.exitcode for process in started}


def _run_shell(path, args, cwd, env, output):
    """Run a shell script and return its exit code in a set."""
    env = {**env, "PYTHON": sys.executable, "PORT": free_port()}
    with open(output, "a") as file:
        done = subprocess.run(["bash", path, *args], stdout=file, stderr=file, cwd=cwd, env=env)
    return {done.returncode}


def run_tool(name, *args, code=0, cwd=None, env=None, processes=1):
    """Run a tool in a process of its own and return its output.

    Args:
        name (str | Path): Path of the tool below ``tools``, or of another script.
        args: Its arguments.
        code (int): The exit code it has to end with; negative for a signal.
        cwd (Path, optional): Working directory.
        env (dict, optional): Environment variables in place of those of this process.
        processes (int): Number of processes, which with ``--launcher pytorch`` form one group.
    """
    path, args = str(ROOT / "tools" / name), list(map(str, args))
    where = (cwd or os.getcwd(), {**(os.environ if env is None else env)})
    with tempfile.NamedTemporaryFile("r") as output:
        if path.endswith(".sh"):
            codes = _run_shell(path, args, *where, output.name)
        else:
            codes = _run_forks(path, args, *where, output.name, processes)
        text = output.read()
    assert codes == {code}, text[-4000:]
    return text


def load_tool(name):
    """Imports a tool, which belongs to no package, as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / "tools" / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@contextmanager
def keep_handlers():
    """Restore the signal handlers that a tool sets when it runs in this process."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in handlers.items():
        signal.signal(number, handler)
