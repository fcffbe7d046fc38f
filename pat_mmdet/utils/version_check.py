"""Are the installed versions ones that pat_mmdet works with?

A version that is known not to work is an ``ImportError`` that says what to install; one that nobody
has tried is a warning. Only metadata are read, so the check imports none of these packages.
"""

from __future__ import annotations

import warnings
from importlib import metadata
from importlib.util import find_spec
from typing import NamedTuple

from packaging.specifiers import SpecifierSet
from packaging.version import InvalidVersion, Version


class Package(NamedTuple):
    """What is known about a package.

    Attributes:
        distributions: The names it is published under: the original, then forks and variants that
            are imported by the same name.
        supported: The versions to install (the extras of setup.py say the same).
        tested: The newest series that the tests ran with.
    """

    distributions: tuple[str, ...]
    supported: str
    tested: str


class Incompatibility(NamedTuple):
    """Versions that do not work, always or beside certain versions of another distribution.

    Attributes:
        package: The package, a key of :data:`PACKAGES`.
        versions: Those that do not work.
        supported: Those to install instead.
        reason: Why, as the end of a sentence.
        with_package: The distribution with which they do not work; empty: with none.
        with_versions: The versions of that distribution.
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

_REFUSED = "MMDetection {beside} refuses it when it is imported"

INCOMPATIBILITIES = (
    Incompatibility("torch", "<2.0", ">=2.0", "this package is written for torch 2"),
    Incompatibility(
        "mmdet", "<3.0.0", ">=3.1.0,<4.0.0", "its registries are those of MMDetection 2"
    ),
    Incompatibility("mmengine", "<0.7.1", ">=0.10.0,<1.0.0", "MMDetection 3 needs a newer one"),
    Incompatibility("mmengine", ">=1.0.0", ">=0.10.0,<1.0.0", _REFUSED, "mmdet", "<3.4"),
    Incompatibility("mmcv", "<2.0.0", ">=2.0.0,<2.2.0", "MMDetection 3 needs a newer one"),
    Incompatibility("mmcv", ">=2.1.0", ">=2.0.0,<2.1.0", _REFUSED, "mmdet", "<3.2.0"),
    Incompatibility("mmcv", ">=2.2.0", ">=2.0.0,<2.2.0", _REFUSED, "mmdet", ">=3.2.0,<3.4"),
)

_warned: set[str] = set()


def pip_command(package: str, versions: str) -> str:
    """The command that installs certain versions of a package.

    Args:
        package: Its name.
        versions: A version specifier.

    Returns:
        A line for the shell.
    """
    # mmcv itself is no wheel: pip compiles for minutes, or leaves the operators out.
    distribution = "mmcv-lite" if package == "mmcv" else package
    return f'pip install "{distribution}{versions}"'


def installed(distribution: str) -> Version | None:
    """The installed version of a distribution.

    Args:
        distribution: Its name in the package registry.

    Returns:
        The version; None if it is not installed, or calls its version something unintelligible.
    """
    try:
        return Version(metadata.version(distribution))
    except (metadata.PackageNotFoundError, InvalidVersion, TypeError):
        return None


def _find(package: str) -> tuple[str, Version] | None:
    """The name and version under which a package is installed, if it is."""
    for distribution in PACKAGES[package].distributions:
        version = installed(distribution)
        if version is not None:
            return distribution, version
    return None


def _contains(versions: str, version: Version) -> bool:
    return SpecifierSet(versions).contains(version, prereleases=True)


def _known_bad(found: dict[str, tuple[str, Version]]) -> list[str]:
    """A paragraph for each package that cannot work, with the first reason found."""
    problems = {}
    for bad in INCOMPATIBILITIES:
        if bad.package not in found or bad.package in problems:
            continue
        distribution, version = found[bad.package]
        beside = installed(bad.with_package) if bad.with_package else None
        if bad.with_package and (beside is None or not _contains(bad.with_versions, beside)):
            continue
        if _contains(bad.versions, version):
            reason = bad.reason.format(beside=beside)
            command = pip_command(bad.package, bad.supported)
            if f'"{distribution}{bad.supported}"' not in command:  # another distribution's folder
                command = f"pip uninstall -y {distribution} && {command}"
            problems[bad.package] = (
                f"{distribution} {version} does not work ({reason}); "
                f"{bad.package}{bad.supported} does:\n    {command}"
            )
    return list(problems.values())


def _untried(found: dict[str, tuple[str, Version]]) -> list[str]:
    """A clause for each package of a version that was not tried, and for known small defects."""
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
        command = pip_command("setuptools", "<81")
        notes.append(
            "there is no pkg_resources, which mmengine.hub and configs with `_base_ = 'mmdet::...'`"
            f" import ({command})"
        )
    return notes


def check_versions() -> None:
    """Checks the installed versions of torch and the OpenMMLab packages.

    Packages that are not installed are passed over, and the same warning is given once a process.

    Raises:
        ImportError: If one of them is known not to work. The message names each of them with the
            version found, the versions that work, and the command that installs them.
    """
    found = {package: at for package in PACKAGES if (at := _find(package)) is not None}
    problems = _known_bad(found)
    if problems:
        raise ImportError("pat_mmdet cannot run with these versions:\n  " + "\n  ".join(problems))
    notes = _untried(found)
    message = "pat_mmdet, versions: " + "; ".join(notes)
    if notes and message not in _warned:
        _warned.add(message)
        warnings.warn(message, stacklevel=2)
