"""The commands as functions: list, train, load, export and compare from Python.

They run what ``pat-mmdet`` runs, with the same checks, and raise errors in place of its one line.
Importing this module does not import torch.
"""

from __future__ import annotations

import os
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from pat_mmdet.cli.compare import compare
from pat_mmdet.cli.export import export
from pat_mmdet.utils.paths import CONFIGS

if TYPE_CHECKING:
    from mmengine.runner import Runner
    from torch import nn

__all__ = ["compare", "distill", "export", "list_configs", "list_methods", "load_student"]


def list_configs(pattern: str = "*") -> list[str]:
    """Return the names of the project's configs, which all functions and commands take.

    Args:
        pattern (str): Shell pattern for the whole name, for example ``'pat/*cifar100*'``.

    Returns:
        list[str]: Paths below ``configs``, sorted.
    """
    names = (path.relative_to(CONFIGS).as_posix() for path in CONFIGS.glob("[!_]*/*.py"))
    return sorted(name for name in names if fnmatch(name, pattern))


def list_methods() -> list[str]:
    """Return the names of the project's methods; ``'none'`` is the student alone."""
    return sorted({path.stem for path in (CONFIGS / "_base_/methods").rglob("*.py")})


def distill(
    config: str | os.PathLike,
    method: str | None = None,
    work_dir: str | os.PathLike | None = None,
    cfg_options: dict[str, Any] | None = None,
    resume: bool = False,
    data: str | os.PathLike | dict[str, Any] | None = None,
) -> Runner:
    """Train a student with a teacher, as ``pat-mmdet train`` does in one process.

    Args:
        config (str | os.PathLike): Path of the config, or a name of :func:`list_configs`. One of a
            teacher, or of a student alone, is trained as it says.
        method (str, optional): Method in place of the config's, see :func:`list_methods`.
        work_dir (str | os.PathLike, optional): Folder for logs and checkpoints; by default that of
            the config, or ``work_dirs/`` with the config's name, and the method's if it is given.
        cfg_options (dict, optional): Values by dotted key, such as
            ``{"train_dataloader.batch_size": 4}``.
        resume (bool): Whether to go on from the newest checkpoint of the work dir, if there is one.
        data (str | os.PathLike | dict, optional): Folder of the data in place of the config's, in
            COCO, Pascal VOC, YOLO or ImageFolder format, or a dict that says more, see
            :mod:`pat_mmdet.utils.data_folder`.

    Returns:
        Runner: The runner after the training; its ``model`` is the distiller.

    Raises:
        FileNotFoundError: If the config, the data or the teacher's weights are missing.
        ValueError: If they do not fit together.
    """
    from pat_mmdet.cli.train import set_resume, set_training_dir, train
    from pat_mmdet.utils import load_config

    if data is not None:
        folder = data if isinstance(data, dict) else os.fspath(data)
        cfg_options = {**(cfg_options or {}), "data": folder}
    cfg = load_config(config, cfg_options, method)
    set_training_dir(cfg, None if work_dir is None else os.fspath(work_dir), method)
    set_resume(cfg, "auto" if resume else None)
    # A visualizer is built once a name and process; the Runner gives one without it a name that is
    # its own, so that a second training does not log into the folder of the first one.
    (cfg.get("visualizer") or {}).pop("name", None)
    return train(cfg)


def load_student(
    checkpoint_or_run: str | os.PathLike,
    config: str | os.PathLike | None = None,
    device: str = "cpu",
) -> nn.Module:
    """Load a trained student without its teacher.

    Args:
        checkpoint_or_run (str | os.PathLike): Work dir of a training (its newest checkpoint is
            taken), checkpoint of it, exported student, or weights.
        config (str | os.PathLike, optional): Config of the pair or the student; by default the one
            in the checkpoint.
        device (str): Where the student is put.

    Returns:
        nn.Module: The student in evaluation mode. ``inference_detector`` of MMDetection takes it:
        its ``cfg`` is the plain config, its ``dataset_meta`` has the names of the classes.

    Raises:
        FileNotFoundError: If there is no such config or checkpoint.
        ValueError: If they cannot be read or do not fit together, or there is no config.
    """
    from pat_mmdet.cli.export import load_student, plain_config
    from pat_mmdet.utils.resume import find_checkpoint

    checkpoint = find_checkpoint(os.fspath(checkpoint_or_run))
    student = load_student(config, checkpoint)
    student.model.cfg = plain_config(student.cfg)
    student.model.dataset_meta = student.dataset_meta
    return student.model.to(device).eval()
