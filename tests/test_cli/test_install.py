"""The wheel as a user installs it: not editable, used from any folder."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from helpers.tools import ROOT

pytestmark = pytest.mark.slow
pytest.importorskip("pip")


def run(*command, **kwargs):
    done = subprocess.run(
        [str(part) for part in command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **kwargs,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel of the source archive, so that both are tested."""
    folder = tmp_path_factory.mktemp("dist")
    build = "import sys; from setuptools.build_meta import build_sdist; build_sdist(sys.argv[1])"
    run(sys.executable, "-c", build, folder, cwd=ROOT)
    (archive,) = folder.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "wheel", "--no-build-isolation", "--no-deps", "--no-index"]
    run(*pip, "--wheel-dir", folder, archive, cwd=folder)
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def command(wheel, tmp_path_factory):
    """Runs ``pat-mmdet`` of an environment that has the wheel, and the libraries of this one."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    # Without the checkout, should it be in PYTHONPATH.
    others = [p for p in os.environ.get("PYTHONPATH", "").split(":") if p and Path(p) != ROOT]
    environment = {**os.environ, "PYTHONPATH": ":".join(others)}
    pip = [sys.executable, "-m", "pip", "--python", python, "install", "--no-deps", "--no-index"]
    run(*pip, wheel, env=environment)
    paths = {name: sysconfig.get_path(name) for name in ("purelib", "platlib")}
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "libraries.pth").write_text("\n".join(paths.values()))

    def run_command(*args):
        tool = [python, "-c", "import pat_mmdet; print(pat_mmdet.__file__)"]
        assert run(*tool, cwd=folder, env=environment).startswith(str(folder))
        return run(folder / "venv/bin/pat-mmdet", *args, cwd=folder, env=environment)

    return run_command


def test_wheel_has_every_config_and_tool_once(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    inside = {name.partition(".mim/")[2] for name in names if ".mim/" in name}
    files = {
        path.relative_to(ROOT).as_posix()
        for folder in ("configs", "tools")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.resolve() == path and "__pycache__" not in path.parts
    }
    assert inside == files | {"model-index.yml"}
    assert {"pat_mmdet/py.typed", "pat_mmdet/visualization/page.html"} <= set(names)


def test_commands_work_from_any_folder(command, digits, tmp_path):
    assert "voc2coco" in command("--help")
    mine = tmp_path / "mine.py"
    pair = "pat/swin_t-res18_coco.py"
    assert "type='KD'" in command("print-config", pair, "--method", "kd", "--save-path", mine)
    assert "type='FitNet'" in command("print-config", mine, "--method", "fitnet")
    command(
        "train", "configs/pat/swin_p-res18_digits.py", "--method", "kd", "--work-dir", tmp_path,
        "--cfg-options", f"data_root={digits}/", "train_cfg.max_iters=2",
        "train_cfg.val_interval=2", "train_dataloader.batch_size=2",
        "model.method.input_size=(64,64)", "model.teacher_checkpoint=None",
    )  # fmt: skip
    assert (tmp_path / "iter_2.pth").is_file()
