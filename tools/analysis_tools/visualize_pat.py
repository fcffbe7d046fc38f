"""Draw RAA's attention, what the prompts change in the teacher, and the similarity of stages.

RUN is the work dir of a training with a teacher, whose newest checkpoint is taken, or a checkpoint.
Three figures are written, those of prompts and attention as far as the method has any:
attention.png (what one region of one image attends to), prompts.png (norms of the teacher's levels
with prompts and without) and cka.png (linear CKA of the stages of student and teacher, before and
after distilling).

Example:
    python tools/analysis_tools/visualize_pat.py configs/pat/swin_p-res18_digits.py \
        work_dirs/swin_p-res18_digits --baseline work_dirs/swin_p-res18_digits_none
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from mmengine.config import Config
from mmengine.registry import DATASETS, MODELS, init_default_scope

from pat_mmdet.cli.arguments import add_cfg_options, add_method
from pat_mmdet.utils import is_distiller, load_config, student_model, write_atomic
from pat_mmdet.utils.errors import clear_errors

if TYPE_CHECKING:
    from torch import nn


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config of the training")
    parser.add_argument("run", help="work dir or checkpoint of the training")
    parser.add_argument(
        "--baseline",
        metavar="RUN",
        help="work dir or checkpoint of the student trained alone, to compare with; initial "
        "weights by default",
    )
    parser.add_argument(
        "--image", type=int, default=0, help="index of the image in the validation set (default: 0)"
    )
    parser.add_argument(
        "--region",
        type=int,
        nargs=2,
        metavar=("ROW", "COLUMN"),
        help="region whose attention is drawn, from 0 0 (default: the one in the middle)",
    )
    parser.add_argument(
        "--num-images", type=int, default=64, help="images for the CKA (default: %(default)s)"
    )
    parser.add_argument(
        "--out-dir",
        type=Path,
        default=Path("work_dirs/figures"),
        help="folder for the figures (default: %(default)s)",
    )
    add_method(parser)
    add_cfg_options(parser)
    return parser.parse_args()


def build_baseline(cfg: Config, run: str | None) -> nn.Module:
    """Build the student with the weights of a training, or with those it starts from."""
    import torch

    from pat_mmdet.utils import load_weights
    from pat_mmdet.utils.resume import find_checkpoint

    torch.manual_seed(0)
    student = MODELS.build(student_model(cfg))
    if run is None:
        student.init_weights()
    else:
        load_weights(student, find_checkpoint(run), allow_unused=("distill.",))
    return student


def main() -> None:
    """Draw as the command line says."""
    args = parse_args()
    with clear_errors(args.traceback):
        import torch

        from pat_mmdet.utils import check_data, load_weights, prepare_environment
        from pat_mmdet.utils.resume import find_checkpoint
        from pat_mmdet.visualization.feature_figures import draw_cka, encode_png
        from pat_mmdet.visualization.pat_figures import DistillerFigures

        cfg = load_config(args.config, args.cfg_options, args.method, args.settings)
        if not is_distiller(cfg):
            raise ValueError(f"config {args.config!r} has no teacher; take one of configs/pat")
        check_data(cfg, "val")
        prepare_environment(cfg, "none")
        init_default_scope(cfg.get("default_scope", "mmdet"))
        device = "cuda" if torch.cuda.is_available() else "cpu"
        distiller = MODELS.build(cfg.model)
        load_weights(distiller, find_checkpoint(args.run))
        drawing = DistillerFigures(
            distiller.to(device),
            DATASETS.build(cfg.val_dataloader.dataset),
            (cfg.model.get("student_stages"), cfg.model.get("teacher_stages")),
            num_images=args.num_images,
            batch_size=cfg.val_dataloader.batch_size,
            image=args.image,
            region=args.region,
        )
        before = "initial weights" if args.baseline is None else "trained alone"
        matrices = {
            before: drawing.cka(build_baseline(cfg, args.baseline).to(device)),
            "distilled": drawing.cka(),
        }
        for name, figure in {**drawing.draw(), "cka": draw_cka(matrices)}.items():
            path = args.out_dir / f"{name}.png"
            write_atomic(path, encode_png(figure))
            print(f"[visualize] {path}")


if __name__ == "__main__":
    main()
