"""Measure what the training data loader of a config yields, without a model.

Example:
    python tools/analysis_tools/benchmark_dataloader.py configs/pat/swin_t-res18_coco.py

A training whose steps take longer than a batch takes here does not wait for its data. The loader is
that of the config, with its workers; other settings can be tried with ``--cfg-options
train_dataloader.num_workers=8``. Several trainings, or several processes of one, share the cores of
a machine: each then gets its part of the images a second.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

from mmengine.config import Config
from mmengine.registry import init_default_scope

from pat_mmdet.cli.arguments import add_cfg_options
from pat_mmdet.utils import load_config
from pat_mmdet.utils.errors import clear_errors
from pat_mmdet.utils.io import write_atomic


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description="Benchmark the training data loader of a config")
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--max-iter", type=int, default=100, help="batches to measure (default: %(default)s)"
    )
    parser.add_argument(
        "--num-warmup",
        type=int,
        default=10,
        help="batches before them, in which workers start and fill their queue "
        "(default: %(default)s)",
    )
    parser.add_argument("--json", type=Path, help="also write the result to this file")
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.max_iter < 1 or args.num_warmup < 1:
        parser.error("--max-iter and --num-warmup must be at least 1")
    return args


def benchmark(cfg: Config, max_iter: int, num_warmup: int) -> dict:
    """Measure the training data loader of a config.

    Args:
        cfg: Config with ``train_dataloader``.
        max_iter: How many batches to measure.
        num_warmup: How many batches to take before.

    Returns:
        The settings of the loader and what it yields.
    """
    from mmengine.utils.dl_utils import set_multi_processing

    from pat_mmdet.engine.runner import training_dataloader

    init_default_scope(cfg.get("default_scope", "mmdet"))
    set_multi_processing(**cfg.get("env_cfg", {}).get("mp_cfg", {}))
    loader = training_dataloader(cfg.train_dataloader, seed=0)
    start = time.perf_counter()
    batches = iter(loader)
    next(batches)
    first = time.perf_counter() - start
    for _ in itertools.islice(batches, num_warmup - 1):
        pass
    images = 0
    start = time.perf_counter()
    # Single times would tell little, as workers deliver in bursts.
    for batch in itertools.islice(batches, max_iter):
        images += len(batch["inputs"])
    seconds = time.perf_counter() - start
    return dict(
        num_workers=loader.num_workers,
        batch_size=cfg.train_dataloader.batch_size,
        batches=max_iter,
        images=images,
        seconds=seconds,
        images_per_second=images / seconds,
        ms_per_batch=seconds / max_iter * 1000,
        first_batch_seconds=first,
    )


def report(config: str, result: dict) -> str:
    """Describe a result in words."""
    return (
        f"{config}: batches of {result['batch_size']}, {result['num_workers']} workers\n"
        f"{result['images_per_second']:.1f} images a second, {result['ms_per_batch']:.1f} ms a "
        f"batch ({result['batches']} batches; the first came after "
        f"{result['first_batch_seconds']:.1f} s)\n"
        f"A training whose steps take more than {result['ms_per_batch']:.0f} ms does not wait for "
        "its data."
    )


def main() -> None:
    """Measure, print, and write the result where asked to."""
    args = parse_args()

    from pat_mmdet.utils import check_data

    with clear_errors(args.traceback):
        cfg = load_config(args.config, args.cfg_options)
        if cfg.get("train_dataloader") is None:
            raise ValueError(
                f"config {args.config!r} has no train_dataloader; give that of a training"
            )
        check_data(cfg, "train")
        result = benchmark(cfg, args.max_iter, args.num_warmup)
        print(report(args.config, result))
        if args.json is not None:
            args.json.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(args.json, json.dumps(dict(config=args.config, **result), indent=2))


if __name__ == "__main__":
    main()
