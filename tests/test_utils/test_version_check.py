import importlib
import re
import subprocess
import sys
import textwrap
import warnings
from importlib import metadata
from pathlib import Path

import pytest

from pat_mmdet import version
from pat_mmdet.utils import version_check as versions

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "torch": "2.11.0+cu130",
    "mmengine": "0.10.7",
    "mmcv": "2.1.0",
    "mmdet": "3.3.0",
    "mmpretrain": "1.2.0",
    "timm": "1.0.31",
    "numpy": "2.2.6",
}


@pytest.fixture
def pretend(monkeypatch):
    """Makes the check see these versions, and no others."""

    def use(**changes):
        found = {**GOOD, **{name.replace("_", "-"): at for name, at in changes.items()}}

        def version_of(distribution):
            if found.get(distribution) is None:
                raise metadata.PackageNotFoundError(distribution)
            return found[distribution]

        monkeypatch.setattr(versions.metadata, "version", version_of)
        monkeypatch.setattr(versions, "find_spec", lambda name: object())

    monkeypatch.setattr(versions, "_warned", set())
    return use


def check_silently():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        versions.check_versions()


def test_tested_versions_pass_silently(pretend):
    pretend()
    check_silently()


def test_installed_packages_are_found():
    found = versions.find_packages()
    for name in ("torch", "mmengine", "mmdet"):
        imported = importlib.import_module(name).__version__
        assert found[name][1].release == versions.Version(imported).release
        assert found[name][0] in versions.PACKAGES[name].distributions


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"torch": "1.13.1+cu117"}, r"torch 1\.13\.1\+cu117 .*\n.*pip install \"torch>=2\.0\""),
        ({"mmengine": "0.6.0"}, r"mmengine 0\.6\.0 .*\n.*pip install \"mmengine>=0\.10"),
        ({"mmengine": "1.0.0"}, r"mmengine 1\.0\.0 .*MMDetection 3\.3\.0 refuses"),
        ({"mmcv": "1.7.2"}, r"mmcv 1\.7\.2 .*install mmcv>=2\.0\.0,<2\.2\.0:"),
        ({"mmcv": None, "mmcv_full": "1.7.2"}, r"mmcv-full 1\.7\.2 "),
        (
            {"mmcv": "2.2.0"},
            r"mmcv 2\.2\.0 .*\n +pip uninstall -y mmcv && pip install \"mmcv-lite>=2\.0",
        ),
        (
            {"mmcv": None, "mmcv_lite": "2.2.0"},
            r"mmcv-lite 2\.2\.0 .*\n +pip install \"mmcv-lite>=2\.0\.0,<2\.2\.0\"",
        ),
        (
            {"mmcv": None, "onedl_mmcv": "2.3.0"},
            r"onedl-mmcv 2\.3\.0 .*MMDetection 3\.3\.0 refuses",
        ),
        ({"mmdet": "3.1.0"}, r"mmcv 2\.1\.0 .*MMDetection 3\.1\.0 refuses.*>=2\.0\.0,<2\.1\.0"),
        ({"mmdet": "2.28.2"}, r"mmdet 2\.28\.2 .*\n.*pip install \"mmdet>=3\.1\.0,<4\.0\.0\""),
    ],
)
def test_bad_version_is_one_clear_error(pretend, changes, message):
    pretend(**changes)
    with pytest.raises(ImportError, match=message):
        versions.check_versions()


def test_all_bad_versions_are_named(pretend):
    pretend(torch="1.12.0", mmcv="1.7.2")
    with pytest.raises(ImportError) as error:
        versions.check_versions()
    assert "torch 1.12.0" in str(error.value)
    assert "mmcv 1.7.2" in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"torch": "2.12.0"}, r"torch 2\.12\.0 is newer than 2\.11"),
        ({"torch": "3.0.0.dev20270101"}, r"torch 3\.0\.0\.dev20270101 is newer"),
        ({"mmdet": "3.4.0"}, r"mmdet 3\.4\.0 is newer than 3\.3"),
        ({"mmdet": "3.4.0", "mmcv": "2.2.0"}, r"mmcv 2\.2\.0 is newer than 2\.1.*; mmdet 3\.4\.0"),
        ({"mmengine": "0.9.1"}, r"mmengine 0\.9\.1 is outside >=0\.10"),
        ({"numpy": "2.4.0"}, r"numpy 2\.4\.0 has no in1d"),
        ({"mmcv_lite": "2.1.0"}, r"mmcv 2\.1\.0 and mmcv-lite 2\.1\.0 overwrite each other"),
    ],
)
def test_untried_version_is_one_warning(pretend, changes, message):
    pretend(**changes)
    with pytest.warns(UserWarning, match=message):
        versions.check_versions()
    check_silently()


def test_missing_pkg_resources_is_a_warning(pretend, monkeypatch):
    pretend()
    monkeypatch.setattr(versions, "find_spec", lambda name: None)
    with pytest.warns(UserWarning, match=r"no pkg_resources.*setuptools<81"):
        versions.check_versions()


def test_forks_are_the_same_packages(pretend):
    originals = dict.fromkeys(("mmcv", "mmdet", "mmengine", "mmpretrain"))
    forks = {"onedl_mmcv": "2.1.0", "onedl_mmdetection": "3.3.0", "onedl_mmengine": "0.10.9"}
    pretend(**originals, **forks)
    check_silently()
    pretend(**originals, **{**forks, "onedl_mmcv": "2.3.6", "onedl_mmdetection": "3.5.1"})
    with pytest.warns(UserWarning, match=r"onedl-mmcv 2\.3\.6 .*onedl-mmdetection 3\.5\.1 "):
        versions.check_versions()


def test_mmcv_lite_is_as_good_as_mmcv(pretend):
    pretend(mmcv=None, mmcv_lite="2.1.0")
    check_silently()


def test_unknown_versions(pretend):
    pretend(mmpretrain=None, timm=None, numpy=None, torch="built-by-hand")
    check_silently()


def test_setup_declares_the_same_ranges():
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for name, package in versions.PACKAGES.items():
        assert versions.pip_command(name, package.supported).removeprefix("pip install ") in setup


def test_requirements_are_pinned():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("#")[0].strip() for line in lines]
    pins = [pin for pin in pins if pin]
    assert not [pin for pin in pins if not re.match(r"[\w.-]+==[\w.]+( *;|$)", pin)]
    exact = dict(re.match(r"([\w.-]+)==([\w.]+)", pin).groups() for pin in pins)
    for name, package in versions.PACKAGES.items():
        pinned = exact["mmcv-lite" if name == "mmcv" else name]
        assert versions.SpecifierSet(package.supported).contains(pinned)
        assert pinned.startswith(package.tested)


def run(code):
    """Runs code in a Python of its own; gives what it writes to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", "import sys\n" + textwrap.dedent(code)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_losses_and_layers_need_torch_alone():
    errors = run("""
        names = ["mmengine", "mmcv", "mmdet", "mmpretrain", "timm", "numpy", "scipy", "packaging"]
        sys.modules.update(dict.fromkeys(names))
        import pat_mmdet, pat_mmdet.models.losses, pat_mmdet.models.layers
        assert pat_mmdet.__version__
    """)
    assert "pat_mmdet" not in errors, errors


def test_import_of_the_package_checks_versions():
    run("""
        from importlib import metadata
        version = metadata.version
        metadata.version = lambda name: "2.28.2" if name == "mmdet" else version(name)
        try:
            import pat_mmdet
        except ImportError as error:
            assert "mmdet 2.28.2 is incompatible" in str(error)
        else:
            raise AssertionError("no error")
    """)


def test_version_is_a_version():
    assert versions.Version(version.__version__)
    assert importlib.import_module("pat_mmdet").__version__ == version.__version__
