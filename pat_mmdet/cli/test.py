"""Evaluate the student of a config, or its teacher; a teacher is built only when asked for."""

from __future__ import annotations

import argparse
from copy import deepcopy

from mmengine.config import Config
from mmengine.registry import METRICS

from pat_mmdet.cli.arguments import add_cfg_options, add_launcher, set_local_rank
from pat_mmdet.utils import (
    is_distiller,
    load_config,
    prepare_environment,
    set_work_dir,
    student_model,
    teacher_model,
)
from pat_mmdet.utils.errors import clear_errors


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="path of the config")
    parser.add_argument("checkpoint", nargs="?", help="checkpoint; may be left out with --teacher")
    parser.add_argument("--work-dir", help="folder for the metrics")
    parser.add_argument("--out", help="pickle file for the predictions")
    parser.add_argument("--show", action="store_true", help="show the predictions in a window")
    parser.add_argument("--show-dir", help="folder for images with the predictions")
    parser.add_argument("--wait-time", type=float, default=2, help="seconds an image is shown")
    parser.add_argument("--tta", action="store_true", help="average over flipped images")
    parser.add_argument("--teacher", action="store_true", help="evaluate the teacher instead")
    add_cfg_options(parser)
    add_launcher(parser)
    args = parser.parse_args()
    set_local_rank(args)
    if args.out is not None and not args.out.endswith((".pkl", ".pickle")):
        parser.error("--out must end with .pkl or .pickle")
    if args.checkpoint is None and not args.teacher:
        parser.error("a checkpoint is needed (only --teacher knows its own)")
    return args


def choose_model(cfg: Config, args: argparse.Namespace) -> str | None:
    """Put the network to test in place of the distiller, and return its checkpoint.

    There is none for a teacher of timm that brings its weights along.

    Raises:
        ValueError: If there is no teacher, or no checkpoint of it.
    """
    if not args.teacher:
        cfg.model = student_model(cfg)
        return args.checkpoint
    if not is_distiller(cfg):
        raise ValueError(f"config {args.config!r} has no teacher; take one of configs/pat")
    checkpoint = args.checkpoint or cfg.model.teacher_checkpoint
    teacher = teacher_model(cfg.model.teacher, checkpoint)
    if checkpoint is None and not teacher.get("pretrained"):
        raise ValueError(
            "model.teacher_checkpoint is None; give the teacher's checkpoint on the command line"
        )
    cfg.model = teacher
    return checkpoint


def is_classification(cfg: Config) -> bool:
    """Return True if a config is for mmpretrain."""
    return cfg.get("default_scope") == "mmpretrain"


def add_tta(cfg: Config) -> None:
    """Wrap the model for test-time augmentation, by flipping unless the config says more."""
    boxes = dict(nms=dict(type="nms", iou_threshold=0.5), max_per_img=100)
    wrapper = dict(type="DetTTAModel", tta_cfg=boxes)
    cfg.setdefault(
        "tta_model", dict(type="AverageClsScoreTTA") if is_classification(cfg) else wrapper
    )
    if "tta_pipeline" not in cfg:
        *head, pack = deepcopy(cfg.test_dataloader.dataset.pipeline)
        identity = "sample_idx" if is_classification(cfg) else "img_id"
        meta_keys = (identity, "img_path", "ori_shape", "img_shape", "scale_factor")
        pack.meta_keys = (*pack.get("meta_keys", meta_keys), "flip", "flip_direction")
        # The results are drawn with the annotations of the first view, so that is the plain one.
        flips = [dict(type="RandomFlip", prob=prob) for prob in (0.0, 1.0)]
        cfg.tta_pipeline = [*head, dict(type="TestTimeAug", transforms=[flips, [pack]])]
    cfg.model = dict(**cfg.tta_model, module=cfg.model)
    cfg.test_dataloader.dataset.pipeline = cfg.tta_pipeline


def draw(cfg: Config, args: argparse.Namespace) -> None:
    """Switch the drawing of predictions on."""
    if not is_classification(cfg):
        from mmdet.engine.hooks.utils import trigger_visualization_hook

        trigger_visualization_hook(cfg, args)
        return
    cfg.default_hooks.visualization.update(
        type="ImageFileVisualizationHook",
        enable=True,
        interval=1,
        show=args.show,
        out_dir=args.show_dir,
        wait_time=args.wait_time,
    )


def main() -> None:
    """Test as the command line says."""
    args = parse_args()

    from mmengine.model import is_model_wrapper
    from mmengine.runner import Runner

    from pat_mmdet.utils import check_data, load_weights

    with clear_errors(args.traceback):
        cfg = load_config(args.config, args.cfg_options)
        set_work_dir(cfg, args.work_dir)
        check_data(cfg, "test")
        prepare_environment(cfg, args.launcher)
        checkpoint = choose_model(cfg, args)
        # Otherwise the runner would load its own over the checkpoint under test.
        cfg.load_from, cfg.resume = None, False
        if args.show or args.show_dir:
            draw(cfg, args)
        if args.tta:
            add_tta(cfg)
        runner = Runner.from_cfg(cfg)
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if checkpoint is not None:
            network = model.module if args.tta else model
            load_weights(network, checkpoint, allow_unused=("distill.",))
        if args.out is not None:
            dump = "DumpResults" if is_classification(cfg) else "DumpDetResults"
            metric = METRICS.build(dict(type=dump, out_file_path=args.out))
            runner.test_evaluator.metrics.append(metric)
        try:
            runner.test()
        finally:
            runner.call_hook("on_exit")


if __name__ == "__main__":
    main()
