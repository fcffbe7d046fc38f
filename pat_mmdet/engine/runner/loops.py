"""Training loops whose random numbers depend on the step alone, so that a run can be resumed.

The augmentation of a sample is seeded by its position in the order of samples, and a step by its
number. A resumed run therefore draws what an unbroken one would have drawn, with any number of
data loader workers, and no random state has to be saved.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.registry import DATA_SAMPLERS, DATASETS, LOOPS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, get_worker_info

from pat_mmdet.engine.runner.termination import shield_workers

# Separates the seeds of steps from those of samples.
_STEP, _SAMPLE = 0, 1

# The index of a sample in the dataset, and the seed of its augmentation.
_SeededIndex = tuple[int, tuple[int, ...]]


@LOOPS.register_module()
class ResumableIterBasedTrainLoop(IterBasedTrainLoop):
    """An ``IterBasedTrainLoop`` that continues after a resume as if it had not been interrupted.

    Batches that were trained already are skipped in the batch sampler, so that their images are
    not read again.

    Args:
        runner (Runner): The runner.
        dataloader (dict): Config of the training data loader.
        **kwargs: Arguments of mmengine's ``IterBasedTrainLoop``.
    """

    dataloader: DataLoader

    def __init__(self, runner: Runner, dataloader: dict, **kwargs: Any) -> None:
        self._dataloader_cfg = dataloader
        super().__init__(runner, training_dataloader(dataloader, **_seeds(runner)), **kwargs)

    def run(self) -> torch.nn.Module:
        """Train from the current iteration to the last."""
        if self._iter >= self._max_iters:
            return _evaluate_finished(self)
        if self._iter > 0:
            cfg = dict(self._dataloader_cfg, dataset=self.dataloader.dataset.dataset)
            self.dataloader = training_dataloader(
                cfg, first_batch=self._iter, **_seeds(self.runner)
            )
            self.dataloader_iterator = _ResumedIterator(iter(self.dataloader), self._iter)
        return super().run()

    def run_iter(self, data_batch: Sequence[dict]) -> None:
        """Seed all random generators by the step, then train on a batch."""
        _seed_all((_STEP, self.runner.seed, get_rank(), self._iter))
        with _hooks_see_errors(self.runner):
            super().run_iter(data_batch)


@LOOPS.register_module()
class ResumableEpochBasedTrainLoop(EpochBasedTrainLoop):
    """An ``EpochBasedTrainLoop`` that continues after a resume as if it had not been interrupted.

    A checkpoint that was saved within an epoch is resumed from there.

    Args:
        runner (Runner): The runner.
        dataloader (dict): Config of the training data loader.
        **kwargs: Arguments of mmengine's ``EpochBasedTrainLoop``.
    """

    dataloader: DataLoader

    def __init__(self, runner: Runner, dataloader: dict, **kwargs: Any) -> None:
        self._dataloader_cfg = dataloader
        # Batches of the current epoch that were trained before a resume.
        self._num_skipped = 0
        loader = training_dataloader(dataloader, endless=False, **_seeds(runner))
        super().__init__(runner, loader, **kwargs)
        if len(self.dataloader) == 0:
            raise ValueError(
                f"{len(loader.dataset)} training images are fewer than a batch and drop_last drops "
                "incomplete ones: set a smaller train_dataloader.batch_size"
            )

    def run(self) -> torch.nn.Module:
        """Train from the current epoch to the last."""
        if self._epoch >= self._max_epochs:
            return _evaluate_finished(self)
        if self._iter > 0:
            # The seed may be that of the checkpoint now.
            cfg = dict(self._dataloader_cfg, dataset=self.dataloader.dataset.dataset)
            self.dataloader = training_dataloader(cfg, endless=False, **_seeds(self.runner))
        return super().run()

    def run_epoch(self) -> None:
        """Train for an epoch, or for the rest of one."""
        trained = self._iter - self._epoch * len(self.dataloader)
        # With another number of batches, the epoch begins again.
        self._num_skipped = trained if 0 < trained <= len(self.dataloader) else 0
        self.dataloader.batch_sampler.first_batch = self._iter
        self.dataloader.batch_sampler.num_skipped = self._num_skipped
        super().run_epoch()

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Seed all random generators by the step, then train on a batch."""
        _seed_all((_STEP, self.runner.seed, get_rank(), self._iter))
        with _hooks_see_errors(self.runner):
            super().run_iter(idx + self._num_skipped, data_batch)


@contextmanager
def _hooks_see_errors(runner: Runner) -> Iterator[None]:
    """Call ``on_exception`` of the hooks that have it before an error leaves the step."""
    try:
        yield
    except Exception as error:
        runner.call_hook("on_exception", error=error)
        raise


def _evaluate_finished(loop: BaseLoop) -> torch.nn.Module:
    """Evaluate a finished training, which may have been stopped in its last evaluation."""
    if loop.runner.val_loop is not None:
        loop.runner.call_hook("before_train")  # the best checkpoint may have to be saved
        loop.runner.val_loop.run()
        loop.runner.call_hook("after_train")
    return loop.runner.model


class _ResumedIterator:
    """Iterator of a data loader that begins after the batches that were trained already.

    mmengine's loop advances its iterator by as many steps; these give ``None``.

    Args:
        batches (Iterator): The batches that are left.
        num_skipped (int): Number of batches before them.
    """

    def __init__(self, batches: Iterator, num_skipped: int) -> None:
        self._batches = batches
        self._num_skipped = num_skipped

    def __iter__(self) -> _ResumedIterator:
        return self

    def __next__(self) -> Any:
        if self._num_skipped:
            self._num_skipped -= 1
            return None
        return next(self._batches)

    def skip_iter(self, num_iters: int) -> None:
        """Advance by a number of steps, as newer versions of mmengine ask for it."""
        for _ in range(num_iters):
            next(self)


def _seeds(runner: Runner) -> dict[str, Any]:
    """Return the arguments by which a runner wants its training data seeded."""
    diff_rank_seed = runner._randomness_cfg.get("diff_rank_seed", False)
    return dict(seed=runner.seed, diff_rank_seed=diff_rank_seed)


def training_dataloader(
    cfg: dict,
    seed: int,
    diff_rank_seed: bool = False,
    first_batch: int = 0,
    endless: bool = True,
) -> DataLoader:
    """Build the data loader of a config with seeded samples, as the training loops use it.

    Args:
        cfg (dict): Config of the data loader, with all options that mmengine knows.
        seed (int): Seed of the order of the samples and of their augmentation.
        diff_rank_seed (bool): Whether the sampler of each process has a seed of its own.
        first_batch (int): Number of the first batch to yield.
        endless (bool): Whether to continue with the next epoch after the last batch of one.

    Returns:
        DataLoader: The data loader.

    Raises:
        TypeError: If ``cfg`` is no config.
    """
    if isinstance(cfg, DataLoader):
        raise TypeError(
            "the resumable training loops build the data loader themselves: give train_dataloader "
            "as a config (dict), or use mmengine's own loops"
        )
    cfg = dict(cfg)
    cfg["dataset"] = dict(type=_SeededDataset, dataset=cfg["dataset"])
    cfg["batch_sampler"] = dict(
        type=_SeededBatchSampler if endless else _SeededEpochBatchSampler,
        batch_sampler=cfg.get("batch_sampler"),
        drop_last=cfg.pop("drop_last", False),
        seed=(_SAMPLE, seed, get_rank()),
        first_batch=first_batch,
    )
    loader = Runner.build_dataloader(cfg, seed=seed, diff_rank_seed=diff_rank_seed)
    shield_workers(loader)
    return loader


class _SeededBatchSampler:
    """An endless batch sampler whose items carry the seed of their augmentation.

    Args:
        sampler (Sampler): Sampler of dataset indices.
        batch_size (int): Samples of a batch.
        batch_sampler (dict | Sampler, optional): The batch sampler to wrap, or its config; torch's
            by default. It is restarted when it ends.
        drop_last (bool): Whether torch's batch sampler drops an incomplete last batch.
        seed (tuple[int, ...]): Seed of all samples.
        first_batch (int): Number of the first batch to yield.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        batch_sampler: Any,
        drop_last: bool,
        seed: tuple[int, ...],
        first_batch: int,
    ) -> None:
        if batch_sampler is None:
            batch_sampler = BatchSampler(sampler, batch_size, drop_last)
        elif isinstance(batch_sampler, dict):
            batch_sampler = DATA_SAMPLERS.build(
                batch_sampler, default_args=dict(sampler=sampler, batch_size=batch_size)
            )
        self.batch_sampler = batch_sampler
        self.sampler = batch_sampler.sampler
        self.first_batch = first_batch
        self._seed = seed

    def __iter__(self) -> Iterator[list[_SeededIndex]]:
        number = 0
        epoch = 0
        while True:
            start = number
            for indices in self.batch_sampler:
                if number >= self.first_batch:
                    yield self._seeded(indices, number)
                number += 1
            if number == start:
                raise ValueError(
                    "the training data gives no batch: fewer images than the batch size "
                    "(with drop_last), or none at all"
                )
            epoch += 1
            if hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def _seeded(self, indices: Sequence[int], number: int) -> list[_SeededIndex]:
        """Return the items of the batch with a number."""
        return [(index, (*self._seed, number, i)) for i, index in enumerate(indices)]


class _SeededEpochBatchSampler(_SeededBatchSampler):
    """The same for one epoch, or for the rest of one.

    Attributes:
        num_skipped (int): Number of batches before the one with the number ``first_batch``.
    """

    num_skipped = 0

    def __iter__(self) -> Iterator[list[_SeededIndex]]:
        rest = islice(self.batch_sampler, self.num_skipped, None)
        for number, indices in enumerate(rest, self.first_batch):
            yield self._seeded(indices, number)


class _SeededDataset(Dataset):
    """A dataset whose samples are augmented with the seed that comes with their index.

    Args:
        dataset (dict | Dataset): The dataset to wrap, or its config.
    """

    def __init__(self, dataset: dict | Dataset) -> None:
        self.dataset = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset

    def __getitem__(self, item: _SeededIndex) -> Any:
        index, seed = item
        if get_worker_info() is not None:
            # A worker draws for samples alone: it has no state to restore, which would cost more
            # than the rest of the seeding.
            _seed_cpu(seed)
            return self.dataset[index]
        with _seeded(seed):
            return self.dataset[index]

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        # Copying and unpickling look for special names before `dataset` is there.
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)


def _seed_all(key: tuple[int, ...]) -> None:
    """Seed Python, NumPy and torch on all devices."""
    torch.manual_seed(_seed_cpu(key))


def _seed_cpu(key: tuple[int, ...]) -> int:
    """Seed Python, NumPy and torch on the CPU; return the seed."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    return seed


@contextmanager
def _seeded(key: tuple[int, ...]) -> Iterator[None]:
    """Seed the generators of the CPU within the context only."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        _seed_cpu(key)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
