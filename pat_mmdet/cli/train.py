"""Train a detector or classifier: a student with a teacher, a student alone, or a teacher."""

import argparse

from mmengine.config import Config

from pat_mmdet.cli.arguments import add_cfg_options, add_launcher, add_method, set_local_rank
from pat_mmdet.utils import (
    is_distiller,
    load_config,
    prepare_environment,
    set_work_dir,
)
from pat_mmdet.utils.errors import clear_errors


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
        ValueError: If it cannot be read, or the rate cannot be scaled.
    """
    from pat_mmdet.utils.checkpoint import read_training
    from pat_mmdet.utils.resume import checkpoint_folder, list_checkpoints

    set_work_dir(cfg, args.work_dir)
    if args.method is not None and args.work_dir is None:
        cfg.work_dir = f"{cfg.work_dir}_{args.method}"
    if args.settings == "published" and args.work_dir is None:
        cfg.work_dir = f"{cfg.work_dir}_published"
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
    if args.resume == "auto":
        hook = cfg.get("default_hooks", {}).get("checkpoint") or {}
        folder = checkpoint_folder(cfg.work_dir, hook.get("out_dir"))
        # SafeCheckpointHook chooses among them. The first start has the weights of the config.
        cfg.resume = cfg.get("load_from") is None or bool(
            list_checkpoints(folder, hook.get("filename_tmpl"))
        )
        if cfg.resume:
            cfg.load_from = None
    elif args.resume is not None:
        read_training(args.resume)  # once before anything is built, to fail early
        cfg.resume, cfg.load_from = True, args.resume


def main() -> None:
    """Train as the command line says."""
    args = parse_args()

    from mmengine.runner import Runner

    from pat_mmdet.utils import check_data

    with clear_errors(args.traceback):
        cfg = load_config(args.config, args.cfg_options, args.method, args.settings)
        apply_flags(cfg, args)
        check_data(cfg, "train", "val")
        prepare_environment(cfg, args.launcher)
        Runner.from_cfg(cfg).train()


if __name__ == "__main__":
    main()
