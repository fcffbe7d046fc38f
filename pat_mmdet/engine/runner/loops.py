"""Training loops whose random numbers depend on the step alone, so that a run can be resumed.

The augmentation of a sample is seeded by its place in the order of samples, and a step by its
number. A resumed run therefore draws what an unbroken one would have drawn, with any number of
data loader workers, and no random state has to be saved.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.registry import LOOPS
from mmengine.runner import BaseLoop, EpochBasedTrainLoop, IterBasedTrainLoop, Runner
from torch.utils.data import DataLoader, Dataset, get_worker_info

# Separates the seeds of steps from those of samples.
_STEP, _SAMPLE = 0, 1


@LOOPS.register_module()
class ResumableIterBasedTrainLoop(IterBasedTrainLoop):
    """An ``IterBasedTrainLoop`` that goes on after a resume as if it had not been interrupted.

    Batches that were trained already are skipped in the batch sampler, so that their images are
    not read again.

    Args:
        runner (Runner): The runner.
        dataloader (dict): Config of the training data loader.
        **kwargs: Arguments of mmengine's ``IterBasedTrainLoop``.
    """

    def __init__(self, runner: Runner, dataloader: dict, **kwargs: Any) -> None:
        self._dataloader_cfg = dataloader
        super().__init__(runner, training_dataloader(dataloader, **_seeds(runner)), **kwargs)

    def run(self) -> torch.nn.Module:
        """Trains from the current iteration to the last."""
        if self._iter >= self._max_iters:
            return _evaluate_finished(self)
        if self._iter > 0:
            self.dataloader = training_dataloader(
                self._dataloader_cfg, first_batch=self._iter, **_seeds(self.runner)
            )
            self.dataloader_iterator = _after_skipping(self._iter, iter(self.dataloader))
        return super().run()

    def run_iter(self, data_batch: Sequence[dict]) -> None:
        """Seeds all random generators by the step, then trains on a batch."""
        _seed_all((_STEP, self.runner.seed, get_rank(), self._iter))
        super().run_iter(data_batch)


@LOOPS.register_module()
class ResumableEpochBasedTrainLoop(EpochBasedTrainLoop):
    """An ``EpochBasedTrainLoop`` that goes on after a resume as if it had not been interrupted.

    It is resumed at the beginning of an epoch.

    Args:
        runner (Runner): The runner.
        dataloader (dict): Config of the training data loader.
        **kwargs: Arguments of mmengine's ``EpochBasedTrainLoop``.
    """

    def __init__(self, runner: Runner, dataloader: dict, **kwargs: Any) -> None:
        loader = training_dataloader(dataloader, endless=False, **_seeds(runner))
        super().__init__(runner, loader, **kwargs)

    def run(self) -> torch.nn.Module:
        """Trains from the current epoch to the last."""
        if self._epoch >= self._max_epochs:
            return _evaluate_finished(self)
        return super().run()

    def run_epoch(self) -> None:
        """Trains for an epoch."""
        self.dataloader.batch_sampler.first_batch = self._iter
        super().run_epoch()

    def run_iter(self, idx: int, data_batch: Sequence[dict]) -> None:
        """Seeds all random generators by the step, then trains on a batch."""
        _seed_all((_STEP, self.runner.seed, get_rank(), self._iter))
        super().run_iter(idx, data_batch)


def _evaluate_finished(loop: BaseLoop) -> torch.nn.Module:
    """Evaluates a training that had come to its end, in case it was stopped while evaluating."""
    if loop.runner.val_loop is not None:
        loop.runner.val_loop.run()
    return loop.runner.model


def _after_skipping(steps: int, batches: Iterator) -> Iterator:
    """Gives ``None`` for the steps that mmengine's loop takes and drops, then the batches."""
    yield from (None for _ in range(steps))
    yield from batches


def _seeds(runner: Runner) -> dict[str, Any]:
    """How a runner wants its training data seeded."""
    diff_rank_seed = runner._randomness_cfg.get("diff_rank_seed", False)
    return dict(seed=runner.seed, diff_rank_seed=diff_rank_seed)


def training_dataloader(
    cfg: dict,
    seed: int,
    diff_rank_seed: bool = False,
    first_batch: int = 0,
    endless: bool = True,
) -> DataLoader:
    """Builds the data loader of a config with seeded samples, as the training loops use it.

    Args:
        cfg (dict): Config of the data loader.
        seed (int): Seed of the order of the samples and of their augmentation.
        diff_rank_seed (bool): Whether the sampler of each process has a seed of its own.
        first_batch (int): The number of the first batch to give.
        endless (bool): Whether to go on with the next epoch after the last batch of one.

    Returns:
        DataLoader: The data loader.
    """
    loader = Runner.build_dataloader(cfg, seed=seed, diff_rank_seed=diff_rank_seed)
    kind = _SeededBatches if endless else _SeededEpoch
    batches = kind(loader.batch_sampler, (_SAMPLE, seed, get_rank()), first_batch)
    return DataLoader(
        _SeededDataset(loader.dataset),
        batch_sampler=batches,
        num_workers=loader.num_workers,
        collate_fn=loader.collate_fn,
        pin_memory=loader.pin_memory,
        timeout=loader.timeout,
        worker_init_fn=loader.worker_init_fn,
        prefetch_factor=loader.prefetch_factor,
        persistent_workers=loader.persistent_workers,
    )


class _SeededBatches:
    """An endless batch sampler whose items carry the seed of their augmentation.

    Args:
        batch_sampler (Iterable): Gives lists of dataset indices; restarted when it ends.
        seed (tuple[int, ...]): Seed of all samples.
        first_batch (int): The number of the first batch to give.
    """

    def __init__(self, batch_sampler: Any, seed: tuple[int, ...], first_batch: int) -> None:
        self.batch_sampler = batch_sampler
        self.sampler = batch_sampler.sampler
        self.first_batch = first_batch
        self._seed = seed

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        number = 0
        epoch = 0
        while True:
            start = number
            for indices in self.batch_sampler:
                if number >= self.first_batch:
                    yield self._items(indices, number)
                number += 1
            if number == start:
                raise RuntimeError(
                    "the training data gives no batch: fewer images than the batch size "
                    "(with drop_last), or none at all"
                )
            epoch += 1
            if hasattr(self.sampler, "set_epoch"):
                self.sampler.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def _items(self, indices: Sequence[int], number: int) -> list[tuple[int, tuple[int, ...]]]:
        """The items of a batch, by its number."""
        return [(index, (*self._seed, number, i)) for i, index in enumerate(indices)]


class _SeededEpoch(_SeededBatches):
    """The same for the batches of one epoch, the first of which has the number given."""

    def __iter__(self) -> Iterator[list[tuple[int, tuple[int, ...]]]]:
        for number, indices in enumerate(self.batch_sampler, self.first_batch):
            yield self._items(indices, number)


class _SeededDataset(Dataset):
    """A dataset whose samples are augmented with the seed that comes with their index."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __getitem__(self, item: tuple[int, tuple[int, ...]]) -> Any:
        index, seed = item
        if get_worker_info() is not None:
            # A worker draws for samples alone: it has no state to keep, which would cost more than
            # the rest of the seeding.
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
    """Seeds Python, NumPy and torch on all devices."""
    torch.manual_seed(_seed_cpu(key))


def _seed_cpu(key: tuple[int, ...]) -> int:
    """Seeds Python, NumPy and torch on the CPU; gives the seed."""
    seed = int(np.random.SeedSequence(key).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
    return seed


@contextmanager
def _seeded(key: tuple[int, ...]) -> Iterator[None]:
    """Seeds the generators of the CPU within the context only."""
    python_state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        _seed_cpu(key)
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
