"""Train a detector or classifier: a student with a teacher, a student alone, or a teacher."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from mmengine.config import Config

from pat_mmdet.cli.arguments import add_cfg_options, add_launcher, add_method, set_local_rank
from pat_mmdet.utils import (
    is_distiller,
    load_config,
    prepare_environment,
    set_work_dir,
)
from pat_mmdet.utils.errors import clear_errors

if TYPE_CHECKING:
    from mmengine.runner import Runner

# Visualizer backends by the names of their packages, which --log takes.
_BACKENDS: dict[str, dict[str, str]] = {
    "tensorboard": dict(type="TensorboardVisBackend"),
    "wandb": dict(type="WandbVisBackend"),
    "mlflow": dict(type="EnvMLflowVisBackend"),
}


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of the config")
    parser.add_argument("--work-dir", help="folder for logs and checkpoints")
    parser.add_argument("--amp", action="store_true", help="train with mixed precision")
    parser.add_argument(
        "--compile", action="store_true", help="compile the blocks of the networks (torch.compile)"
    )
    parser.add_argument(
        "--auto-scale-lr",
        action="store_true",
        help="scale the learning rate by the effective batch size",
    )
    parser.add_argument(
        "--resume",
        nargs="?",
        const="auto",
        help="resume from this checkpoint, or from the last one in the work dir if none is given",
    )
    parser.add_argument(
        "--log",
        nargs="+",
        default=[],
        choices=list(_BACKENDS),
        help="log there too, beside the files of the work dir",
    )
    add_method(parser)
    add_cfg_options(parser)
    add_launcher(parser)
    args = parser.parse_args()
    set_local_rank(args)
    return args


def apply_flags(cfg: Config, args: argparse.Namespace) -> None:
    """Apply the flags of the command line to the config.

    Raises:
        FileNotFoundError: If the checkpoint to resume from does not exist.
        ValueError: If it cannot be read, the rate cannot be scaled, or a package is missing.
    """
    set_training_dir(cfg, args.work_dir, args.method, args.settings)
    add_backends(cfg, args.log)
    if args.amp:
        cfg.optim_wrapper.type = "AmpOptimWrapper"
        cfg.optim_wrapper.setdefault("loss_scale", "dynamic")
    if args.compile:
        # mmengine compiles the step of a plain network as a whole; a distiller's hooks forbid that.
        (cfg.model if is_distiller(cfg) else cfg).compile = True
    if args.auto_scale_lr:
        if "base_batch_size" not in cfg.get("auto_scale_lr", {}):
            raise ValueError(
                f"config {args.config!r} does not say what batch its learning rate is for; set "
                "auto_scale_lr=dict(base_batch_size=...)"
            )
        cfg.auto_scale_lr.enable = True
    set_resume(cfg, args.resume)


def set_training_dir(
    cfg: Config, work_dir: str | None, method: str | None, settings: str | None = None
) -> None:
    """Set the work dir; one that is not given has method and settings at its end, if they are.

    Args:
        cfg (Config): Changed in place.
        work_dir (str, optional): The work dir.
        method (str, optional): Method that was put in place of the config's.
        settings (str, optional): Settings in place of the config's.
    """
    set_work_dir(cfg, work_dir)
    if method is not None and work_dir is None:
        cfg.work_dir = f"{cfg.work_dir}_{method}"
    if settings == "published" and work_dir is None:
        cfg.work_dir = f"{cfg.work_dir}_published"


def add_backends(cfg: Config, names: Sequence[str]) -> None:
    """Add backends to the visualizer; those it has are kept.

    Args:
        cfg (Config): Changed in place.
        names (Sequence[str]): ``'tensorboard'``, ``'wandb'`` or ``'mlflow'``.

    Raises:
        ValueError: If a package is not installed.
    """
    # Without an origin it is no package but a folder of that name, such as wandb leaves behind.
    missing = [name for name in names if getattr(find_spec(name), "origin", None) is None]
    if missing:
        raise ValueError(
            f"--log: {', '.join(missing)} not installed; pip install {' '.join(missing)}"
        )
    if not names:
        return
    # What the Runner builds for a config without a visualizer.
    default = dict(type="Visualizer", vis_backends=[dict(type="LocalVisBackend")])
    visualizer = cfg.get("visualizer") or default
    backends = list(visualizer.get("vis_backends") or ())
    there = {backend["type"] for backend in backends}
    added = [dict(_BACKENDS[name]) for name in dict.fromkeys(names)]
    backends += [backend for backend in added if backend["type"] not in there]
    cfg.visualizer = {**visualizer, "vis_backends": backends}


def set_resume(cfg: Config, source: str | None) -> None:
    """Have a training go on from a checkpoint.

    Args:
        cfg (Config): Config with a work dir, changed in place.
        source (str, optional): The checkpoint, or ``'auto'`` for the newest in the work dir. Where
            there is none, the training starts.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If it cannot be read.
    """
    from pat_mmdet.utils.checkpoint import read_training
    from pat_mmdet.utils.resume import checkpoint_folder, list_checkpoints

    if source == "auto":
        hook = cfg.get("default_hooks", {}).get("checkpoint") or {}
        folder = checkpoint_folder(cfg.work_dir, hook.get("out_dir"))
        # SafeCheckpointHook chooses among them. The first start has the weights of the config.
        cfg.resume = cfg.get("load_from") is None or bool(
            list_checkpoints(folder, hook.get("filename_tmpl"))
        )
        if cfg.resume:
            cfg.load_from = None
    elif source is not None:
        read_training(source)  # once before anything is built, to fail early
        cfg.resume, cfg.load_from = True, source


def train(cfg: Config, launcher: str = "none") -> Runner:
    """Check the data of a config, and train.

    Args:
        cfg (Config): Config with a work dir.
        launcher (str): What started this process, see :func:`prepare_environment`.

    Returns:
        Runner: The runner after the training.

    Raises:
        FileNotFoundError: If data are missing.
        ValueError: If they do not fit the config, or the launcher does not fit the machine.
    """
    from mmengine.runner import Runner

    from pat_mmdet.utils import check_data

    check_data(cfg, "train", "val")
    prepare_environment(cfg, launcher)
    runner = Runner.from_cfg(cfg)
    try:
        runner.train()
    finally:
        runner.call_hook("on_exit")
    return runner


def main() -> None:
    """Train as the command line says."""
    args = parse_args()
    with clear_errors(args.traceback):
        cfg = load_config(args.config, args.cfg_options, args.method, args.settings)
        apply_flags(cfg, args)
        train(cfg, args.launcher)


if __name__ == "__main__":
    main()
