"""Which checkpoint a training goes on from, and what has changed since it was written."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path

from mmengine.logging import print_log

from pat_mmdet.utils.checkpoint import read_training
from pat_mmdet.utils.nested import leaves

# How mmengine names the checkpoints of a training.
_TEMPLATES = ("iter_{}.pth", "epoch_{}.pth")
# What of a config decides how a training goes on.
_SETTINGS = ("model", "optim_wrapper", "param_scheduler", "train_cfg", "auto_scale_lr")


def list_checkpoints(folder: Path, template: str | None = None) -> list[Path]:
    """Return the checkpoints of a training that are in a folder, the newest first.

    Args:
        folder (Path): The work dir, or another folder for its checkpoints.
        template (str, optional): ``filename_tmpl`` of the checkpoint hook.

    Returns:
        list[Path]: Files such as ``iter_5000.pth`` or ``epoch_2_iter_900.pth``; not the best ones.
    """
    templates = {*_TEMPLATES, template or _TEMPLATES[0]}
    names = re.compile(
        "|".join(re.escape(name).replace(r"\{\}", r"\d+(_iter_\d+)?") for name in templates)
    )
    found = [path for path in folder.glob("*") if names.fullmatch(path.name)]
    return sorted(found, key=_number, reverse=True)


def find_checkpoint(run: str) -> str:
    """Return the newest checkpoint of a work dir; what is no folder is one itself.

    Args:
        run (str): Work dir, or path or URL of a checkpoint.

    Raises:
        FileNotFoundError: If the work dir has no checkpoint.
    """
    if not Path(run).is_dir():
        return run
    newest = next(iter(list_checkpoints(Path(run))), None)
    if newest is None:
        raise FileNotFoundError(f"work dir {run!r} has no checkpoint")
    return str(newest)


def checkpoint_folder(work_dir: str, out_dir: str | None = None) -> Path:
    """Return the folder of the checkpoints of a training.

    Args:
        work_dir (str): The work dir.
        out_dir (str, optional): ``out_dir`` of the checkpoint hook.
    """
    return Path(work_dir) if out_dir is None else Path(out_dir, Path(work_dir).name)


def find_resumable(
    work_dir: Path, folder: Path, template: str | None = None
) -> tuple[str, dict] | None:
    """Find the newest whole checkpoint of a training; warn about what is wrong with newer ones.

    What ``last_checkpoint`` names is not needed, so that a copied work dir goes on from its own
    files, and a training that was killed before it wrote that name from the last that it saved.

    Args:
        work_dir (Path): The work dir, which has ``last_checkpoint``.
        folder (Path): The folder with the checkpoints, the work dir as a rule.
        template (str, optional): ``filename_tmpl`` of the checkpoint hook.

    Returns:
        tuple[str, dict] | None: Path and content of the checkpoint; None if there is none, damaged
        or not.

    Raises:
        ValueError: If there are checkpoints and a training can go on from none of them.
    """
    checkpoints = list_checkpoints(folder, template)
    last = work_dir / "last_checkpoint"
    text = last.read_text(encoding="utf-8", errors="replace").strip() if last.is_file() else ""
    named = folder / Path(text).name
    if named in checkpoints:
        # Those of an earlier, longer training in the same work dir.
        newest = named.stat().st_mtime
        earlier = [
            path
            for path in checkpoints
            if _number(path) > _number(named) and path.stat().st_mtime < newest
        ]
        checkpoints = [path for path in checkpoints if path not in earlier]
    named_text = repr(text[:200]) if text else "no checkpoint"
    for path in checkpoints:
        try:
            checkpoint = read_training(str(path))
        except ValueError as error:
            _warn(str(error))
            continue
        if Path(text).absolute() != path.absolute():
            _warn(f"{last} names {named_text}: resuming from {path} instead")
        return str(path), checkpoint
    if checkpoints:
        raise ValueError(
            f"no training can go on from the checkpoints in {str(folder)!r} "
            f"({', '.join(path.name for path in checkpoints)}), see the warnings above. Remove "
            "them to start again, or give the path of another one to --resume"
        )
    if text:
        _warn(f"{last} names {named_text}, and {folder} has no checkpoint: training starts anew")
    return None


def _warn(message: str) -> None:
    print_log(message, "current", logging.WARNING)


def _number(path: Path) -> tuple[int, ...]:
    """Return the epoch or iteration in the name of a checkpoint, with the iteration within it."""
    return tuple(map(int, re.findall(r"\d+", path.name)))


def training_settings(cfg: Mapping, num_processes: int) -> dict[str, str]:
    """Return what decides how a training goes on, as plain data for its checkpoints.

    Args:
        cfg (Mapping): Config of the training.
        num_processes (int): Number of its processes.

    Returns:
        dict[str, str]: Values by dotted key.
    """
    settings = {
        key: value
        for name in _SETTINGS
        for key, value in leaves(cfg.get(name), name)
        if value is not None
    }
    loader = cfg.get("train_dataloader") or {}
    settings["train_dataloader.batch_size"] = loader.get("batch_size")
    settings["number of processes"] = num_processes
    return {key: str(value) for key, value in settings.items()}


def changed_settings(before: Mapping[str, str], now: Mapping[str, str], limit: int = 8) -> str:
    """Return in one line what has changed between two :func:`training_settings`.

    Args:
        before (Mapping[str, str]): Those of the checkpoint.
        now (Mapping[str, str]): Those of the resumed training.
        limit (int): Number of changes to name; the others are counted.

    Returns:
        str: Such as ``"train_dataloader.batch_size 8 -> 4"``; empty if nothing has changed.
    """
    changes = [
        f"{key} {before.get(key, 'not set')} -> {now.get(key, 'not set')}"
        for key in sorted({*before, *now}, key=_order)
        if before.get(key) != now.get(key)
    ]
    more = f" and {len(changes) - limit} more" if len(changes) > limit else ""
    return ", ".join(changes[:limit]) + more


def _order(key: str) -> tuple[bool, int, str]:
    """Sort types before their arguments, and outer keys before inner ones."""
    return not key.endswith(".type"), key.count("."), key
