"""Running the tools as a user does."""

import importlib.util
import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
os.environ.setdefault("OMP_NUM_THREADS", "1")


def free_port():
    """A port that no other test of this machine uses at the moment."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def run_tool(name, *args, code=0, **kwargs):
    """Runs a tool and gives its output; fails if it does not end with the code."""
    command = [sys.executable, str(ROOT / "tools" / name), *map(str, args)]
    if name.endswith(".sh"):
        command[0] = "bash"
        kwargs["env"] = {**os.environ, "PYTHON": sys.executable, "PORT": free_port()}
    result = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False, **kwargs
    )
    assert result.returncode == code, result.stdout[-4000:]
    return result.stdout


def load_tool(name):
    """Imports a tool, which belongs to no package, as a module."""
    spec = importlib.util.spec_from_file_location(Path(name).stem, ROOT / "tools" / name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
