"""Record what PAT's student can follow and what its prompts change."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor, nn

from pat_mmdet.evaluation.features import energy_kept
from pat_mmdet.models.layers import TokenAligner
from pat_mmdet.models.methods import PAT
from pat_mmdet.structures import NetworkOutputs
from pat_mmdet.utils.argument_types import PositiveInt
from pat_mmdet.utils.io import write_atomic

FILE = "pat_statistics.json"


@HOOKS.register_module()
class PATStatisticsHook(Hook):
    """Record statistics of PAT's features, level by level, in ``pat_statistics.json``.

    The file in the work dir is a list with a dict for each recorded step, whose values are lists
    over levels, of the batch of the main process:

    * ``explained``: share of the plain teacher's variance that the aligned student explains, with
      the best scale and offset for each channel; 0 where the correlation is negative.
    * ``explainable``: the largest share that RAA's aligned maps, constant within regions, could
      explain of it; for token teachers, maps of the rank that the aligner has.
    * ``distance``: mean squared distance of aligned student and target, over the variance of the
      plain teacher; not for ``distance='correlation'``, which leaves the student's scale free.
    * ``irreducible``: the part of that distance that no student could remove, as it lies within
      the target's regions.
    * ``energy``: mean square of the prompted teacher's features over that of the plain one's.
    * ``drift``: mean squared distance of both over the plain one's variance.

    ``agreement`` is one number: the share of rows of logits whose largest entry is the same for the
    prompted and the plain teacher. The last three are there for PAT with prompts, ``explainable``
    and ``irreducible`` for ``alignment='raa'``, where no projection carries details. ``step``
    counts from 1.

    Args:
        interval (int): Iterations from one recorded step to the next; the last one is recorded too.
    """

    priority = "LOW"

    def __init__(self, interval: PositiveInt = 10) -> None:
        self.interval = interval
        self._records: list[dict] = []

    def before_train(self, runner: Runner) -> None:
        """Find the method, and what was recorded before a resume.

        Raises:
            ValueError: If the method is not PAT.
        """
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        method = getattr(model, "distill", None)
        if not isinstance(method, PAT):
            raise ValueError(
                f"PATStatisticsHook: the method is {type(method).__name__}; take the hook out, or "
                "train with --method pat or another form of it"
            )
        self._method = method
        path = Path(runner.work_dir, FILE)
        if runner.iter > 0 and path.is_file():
            records = json.loads(path.read_text(encoding="utf-8"))
            self._records = [record for record in records if record["step"] <= runner.iter]

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        """Observe the method in this step, if it is to be recorded."""
        is_due = runner.iter % self.interval == 0 or runner.iter == runner.max_iters - 1
        self._method.observer = self._observe if is_due and is_main_process() else None

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        """Write what was recorded."""
        if self._method.observer is not None:
            self._method.observer = None
            self._records[-1] = {"step": runner.iter + 1, **self._records[-1]}
            write_atomic(Path(runner.work_dir, FILE), json.dumps(self._records) + "\n")

    @torch.no_grad()
    def _observe(
        self,
        aligned: Sequence[Tensor],
        targets: Sequence[Tensor],
        plain: NetworkOutputs,
        prompted: NetworkOutputs | None,
    ) -> None:
        """Record the statistics of a step; arguments as in :attr:`PAT.observer`."""
        variances = [_variance(x) for x in plain.features]
        record = {"explained": list(map(explained_share, aligned, plain.features))}
        if self._method.distance != "correlation":
            gaps = [F.mse_loss(x[: len(y)], y) for x, y in zip(aligned, targets)]
            record["distance"] = list(map(_ratio, gaps, variances))
        if self._method.alignment == "raa":
            grid, aligners = self._method.raa_grid, self._method.aligners
            for name, features in (("explainable", plain.features), ("irreducible", targets)):
                rests = [unreachable_variance(x, a, grid) for x, a in zip(features, aligners)]
                record[name] = list(map(_ratio, rests, variances))
            record["explainable"] = [1 - share for share in record["explainable"]]
        if prompted is not None:
            both = [(x, y[: len(x)]) for x, y in zip(prompted.features, plain.features)]
            record["energy"] = [energy_kept(*pair).item() for pair in both]
            record["drift"] = list(map(_ratio, (F.mse_loss(*pair) for pair in both), variances))
            if prompted.logits is not None:
                winners = prompted.logits.argmax(1)
                same = winners == plain.logits[: len(winners)].argmax(1)
                record["agreement"] = same.float().mean().item()
        self._records.append(record)


def explained_share(student: Tensor, teacher: Tensor) -> float:
    """Return the share of the teacher's variance that a linear map of each channel explains.

    Args:
        student (Tensor): Map, (B, C, H, W).
        teacher (Tensor): Map of the same shape.
    """
    dims = (0, 2, 3)
    x, y = (z.float() - z.float().mean(dims, keepdim=True) for z in (student, teacher))
    slope = (x * y).mean(dims).clamp(min=0) / x.square().mean(dims).clamp(min=1e-12)
    return _ratio((slope * (x * y).mean(dims)).mean(), _variance(teacher))


def unreachable_variance(target: Tensor, aligner: nn.Module, grid: int) -> Tensor:
    """Return the mean squared distance to the nearest map that an aligner could give.

    Args:
        target (Tensor): Map, (B, C, H, W).
        aligner (nn.Module): Aligner of the level.
        grid (int): Regions along each side.

    Returns:
        Tensor: Scalar. Of a ``MapAligner`` the mean variance within regions. A ``TokenAligner``
        mixes grid² tokens to H·W: that beyond the grid² largest principal components.
    """
    target = target.float()
    if isinstance(aligner, TokenAligner):
        rows = target.flatten(2).flatten(0, 1)
        rows = rows - rows.mean(0)
        values = torch.linalg.eigvalsh(rows.t() @ rows / len(rows))
        return values[: -(grid**2)].clamp(min=0).sum() / rows.shape[1]
    # As nearest upsampling assigns positions to regions.
    rows, columns = (
        F.interpolate(torch.eye(grid, device=target.device)[None], size=side, mode="nearest")[0]
        for side in target.shape[-2:]
    )
    sizes = torch.outer(rows.sum(1), columns.sum(1)).clamp(min=1)
    means = rows @ target @ columns.t() / sizes
    return F.mse_loss(rows.t() @ means @ columns, target)


def _variance(x: Tensor) -> Tensor:
    """Return the mean over channels of their variance over batch and positions."""
    return x.float().var((0, 2, 3), correction=0).mean()


def _ratio(x: Tensor, y: Tensor) -> float:
    """Return a quotient, 0 where the divisor is about 0."""
    return (x / y).item() if y > 1e-12 else 0.0
