"""Draw what PAT does, during training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner

from pat_mmdet.models.distillers import BaseDistiller
from pat_mmdet.utils.argument_types import NonNegativeInt, PositiveInt
from pat_mmdet.visualization.feature_figures import draw_cka, render
from pat_mmdet.visualization.pat_figures import DistillerFigures


@HOOKS.register_module()
class PATVisualizationHook(Hook):
    """Draw figures of a distiller into the visualizer, on a fixed set of validation images.

    ``pat_attention`` and ``pat_prompts`` are of one image, if the method is PAT with regions and
    with prompts; ``cka``, for any method, compares the stages of student and teacher at the start
    and now. They are those of ``tools/analysis_tools/visualize_pat.py``. Only the main process
    draws. Between validations the hook does nothing, and the training is the same with it.

    Args:
        interval (int): Validations from one drawing to the next.
        num_images (int): Images for the similarity of stages, spread evenly over the validation
            set.
        image (int): Index of the image that is drawn.
        region (Sequence[int], optional): Row and column of the region whose attention is drawn,
            from 0; by default the one in the middle.
    """

    # After EMAHook has put the trained weights back, which PAT's layers belong to.
    priority = "LOW"

    def __init__(
        self,
        interval: PositiveInt = 1,
        num_images: PositiveInt = 32,
        image: NonNegativeInt = 0,
        region: Sequence[NonNegativeInt] | None = None,
    ) -> None:
        self.interval = interval
        self._options: dict[str, Any] = dict(num_images=num_images, image=image, region=region)
        self._figures: DistillerFigures | None = None
        self._num_validations = 0

    def before_train(self, runner: Runner) -> None:
        """Load the images, and compare the stages at the start.

        Raises:
            ValueError: If there is no teacher or no validation, or the options do not fit it.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        if not isinstance(model, BaseDistiller):
            raise ValueError(
                f"PATVisualizationHook: {type(model).__name__} has no teacher; take the hook out"
            )
        if runner.val_loop is None:
            raise ValueError("PATVisualizationHook draws after validations, and there are none")
        if not is_main_process():
            return
        loader = runner.val_dataloader
        self._figures = DistillerFigures(
            model,
            loader.dataset,
            (runner.cfg.model.get("student_stages"), runner.cfg.model.get("teacher_stages")),
            batch_size=loader.batch_size or 1,
            **self._options,
        )
        self._start = {f"iteration {runner.iter}": self._figures.cka()}

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Draw, if it is time; not in other processes, nor outside of a training."""
        self._num_validations += 1
        if self._num_validations % self.interval or self._figures is None:
            return
        figures = {f"pat_{name}": figure for name, figure in self._figures.draw().items()}
        now = {f"iteration {runner.iter}": self._figures.cka()}
        figures["cka"] = draw_cka({**self._start, **now})
        for name, figure in figures.items():
            runner.visualizer.add_image(name, render(figure), step=runner.iter)
