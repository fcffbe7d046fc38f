"""Check the installed versions of torch and the OpenMMLab packages.

Only metadata are read: the check imports none of these packages.
"""

from __future__ import annotations

import warnings
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version


class Package(NamedTuple):
    """A package that this one works with.

    Attributes:
        distributions (tuple[str, ...]): Distributions that are imported by its name.
        supported (str): Supported versions, as in the extras of setup.py.
        tested (str): Newest series that the tests ran with.
    """

    distributions: tuple[str, ...]
    supported: str
    tested: str


class Incompatibility(NamedTuple):
    """Versions that are known to fail.

    Attributes:
        package (str): A key of :data:`PACKAGES`.
        versions (str): Versions that fail.
        supported (str): Versions to install instead.
        reason (str): Why they fail.
        with_package (str): Distribution together with which they fail; empty if they always do.
        with_versions (str): Versions of that distribution.
    """

    package: str
    versions: str
    supported: str
    reason: str
    with_package: str = ""
    with_versions: str = ""


PACKAGES = {
    "torch": Package(("torch",), ">=2.0", "2.11"),
    "mmengine": Package(("mmengine", "onedl-mmengine"), ">=0.10.0,<1.0.0", "0.10"),
    "mmcv": Package(("mmcv", "onedl-mmcv", "mmcv-lite", "mmcv-full"), ">=2.0.0,<2.2.0", "2.1"),
    "mmdet": Package(("mmdet", "onedl-mmdetection"), ">=3.1.0,<4.0.0", "3.3"),
    "mmpretrain": Package(("mmpretrain", "onedl-mmpretrain"), ">=1.0.0,<2.0.0", "1.2"),
    "timm": Package(("timm",), ">=0.9", "1.0"),
}

_REFUSED = "MMDetection {version} refuses it"
INCOMPATIBILITIES = (
    Incompatibility("torch", "<2.0", ">=2.0", "this package needs torch 2"),
    Incompatibility("mmdet", "<3.0.0", ">=3.1.0,<4.0.0", "its registries are those of mmdet 2"),
    Incompatibility("mmengine", "<0.7.1", ">=0.10.0,<1.0.0", "MMDetection 3 needs a newer one"),
    Incompatibility("mmengine", ">=1.0.0", ">=0.10.0,<1.0.0", _REFUSED, "mmdet", "<3.4"),
    Incompatibility("mmcv", "<2.0.0", ">=2.0.0,<2.2.0", "MMDetection 3 needs a newer one"),
    Incompatibility("mmcv", ">=2.1.0", ">=2.0.0,<2.1.0", _REFUSED, "mmdet", "<3.2.0"),
    Incompatibility("mmcv", ">=2.2.0", ">=2.0.0,<2.2.0", _REFUSED, "mmdet", ">=3.2.0,<3.4"),
)

_warned: set[str] = set()


def pip_command(package: str, versions: str) -> str:
    """Return the command that installs versions of a package.

    Args:
        package (str): Its name.
        versions (str): A version specifier.
    """
    # mmcv itself has no wheels: pip compiles for minutes, or leaves the operators out.
    distribution = "mmcv-lite" if package == "mmcv" else package
    return f'pip install "{distribution}{versions}"'


def installed(distribution: str) -> Version | None:
    """Return the installed version of a distribution; None if it is missing or has no version."""
    try:
        return Version(metadata.version(distribution))
    except (metadata.PackageNotFoundError, InvalidVersion, TypeError):
        return None


def find_packages() -> dict[str, tuple[str, Version]]:
    """Return distribution and version of each package of :data:`PACKAGES` that is installed."""
    return {
        name: (distribution, version)
        for name, package in PACKAGES.items()
        for distribution in reversed(package.distributions)
        if (version := installed(distribution)) is not None
    }


def _contains(versions: str, version: Version) -> bool:
    return SpecifierSet(versions).contains(version, prereleases=True)


def _find_incompatible(found: dict[str, tuple[str, Version]]) -> list[str]:
    """Return a message for each package that is known to fail."""
    messages: dict[str, str] = {}
    for package, versions, supported, reason, with_package, with_versions in INCOMPATIBILITIES:
        other = installed(with_package) if with_package else None  # forks have other requirements
        if package not in found or (
            with_package and (other is None or not _contains(with_versions, other))
        ):
            continue
        distribution, version = found[package]
        if _contains(versions, version):
            command = pip_command(package, supported)
            if f'"{distribution}{supported}"' not in command:  # both would share a folder
                command = f"pip uninstall -y {distribution} && {command}"
            message = f"{distribution} {version} is incompatible ({reason.format(version=other)})"
            messages.setdefault(package, f"{message}; install {package}{supported}:\n    {command}")
    return list(messages.values())


def _find_untested(found: dict[str, tuple[str, Version]]) -> list[str]:
    """Return a note for each package of an untested version, and for known small defects."""
    notes = []
    for package, (distribution, version) in found.items():
        tested = Version(PACKAGES[package].tested)
        if version.release[: len(tested.release)] > tested.release:
            notes.append(f"{distribution} {version} is newer than {tested}, the newest tested")
        elif not _contains(PACKAGES[package].supported, version):
            notes.append(f"{distribution} {version} is outside {PACKAGES[package].supported}")
    lite = installed("mmcv-lite")
    if lite is not None and found["mmcv"][0] != "mmcv-lite":
        notes.append(
            f"{found['mmcv'][0]} {found['mmcv'][1]} and mmcv-lite {lite} overwrite each other's "
            "files; remove both, then install one"
        )
    numpy = installed("numpy")
    if "mmpretrain" in found and numpy is not None and numpy >= Version("2.4"):
        notes.append(f"numpy {numpy} has no in1d, which mmpretrain's retrieval metrics call")
    if "mmengine" in found and find_spec("pkg_resources") is None:
        notes.append(
            "there is no pkg_resources, which mmengine.hub and configs with `_base_ = 'mmdet::...'`"
            f" import ({pip_command('setuptools', '<81')})"
        )
    return notes


def check_versions() -> None:
    """Check the installed versions; missing packages are ignored.

    Versions that nobody has tried are a warning, given once a process.

    Raises:
        ImportError: If a version is known to fail. The message names each of them with the version
            found, the supported ones, and the command that installs them.
    """
    found = find_packages()
    incompatible = _find_incompatible(found)
    if incompatible:
        raise ImportError(
            "pat_mmdet cannot run with these versions:\n  " + "\n  ".join(incompatible)
        )
    notes = _find_untested(found)
    message = "pat_mmdet, versions: " + "; ".join(notes)
    if notes and message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)
