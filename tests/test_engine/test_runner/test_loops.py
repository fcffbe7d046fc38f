"""Resumable training loops: seeded samples, resumed runs, options of the data loader."""

import itertools
import json
import pickle
import random

import numpy as np
import pytest
import torch
from helpers.toy import Noise, history, runner
from mmdet.datasets.samplers import AspectRatioBatchSampler
from mmengine.dataset import DefaultSampler, InfiniteSampler, default_collate, pseudo_collate
from mmengine.runner import IterBasedTrainLoop
from torch.utils.data import BatchSampler, DataLoader, Dataset

from pat_mmdet.engine.runner import (
    ResumableEpochBasedTrainLoop,
    loops,
    training_dataloader,
)
from pat_mmdet.engine.runner.loops import _ResumedIterator, _SeededBatchSampler, _SeededDataset
from pat_mmdet.utils import read_checkpoint


class Images(Dataset):
    """Samples that are random numbers of all generators; some images are tall."""

    def __init__(self, size=7):
        self.size = size
        self.read = []

    def get_data_info(self, index):
        wide = index % 3 != 0
        return dict(width=20 if wide else 10, height=10 if wide else 20)

    def __getitem__(self, index):
        self.read.append(index)
        return dict(
            index=index, python=random.random(), numpy=np.random.rand(), torch=float(torch.rand(()))
        )

    def __len__(self):
        return self.size


def sampler(kind):
    data = Images()
    if kind == "infinite":
        return BatchSampler(InfiniteSampler(data, seed=3), 3, drop_last=True)
    if kind == "aspect ratio":
        return AspectRatioBatchSampler(InfiniteSampler(data, seed=3), 2)
    if kind == "aspect ratio, finite":
        return AspectRatioBatchSampler(DefaultSampler(data, seed=3), 2)
    return BatchSampler(DefaultSampler(data, seed=3), 3, drop_last=kind == "finite, cut")


def seeded(batch_sampler, seed=(1, 2, 3), first_batch=0):
    """Wraps a batch sampler that is built already."""
    return _SeededBatchSampler(
        sampler=None,
        batch_size=None,
        batch_sampler=batch_sampler,
        drop_last=False,
        seed=seed,
        first_batch=first_batch,
    )


def batches(kind, first=0, count=14):
    return list(itertools.islice(seeded(sampler(kind), first_batch=first), count))


KINDS = ("infinite", "aspect ratio", "aspect ratio, finite", "finite", "finite, cut")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first", [1, 9])
def test_skipped_batches(kind, first):
    whole = batches(kind)
    assert len(whole) == 14
    assert batches(kind, first, 14 - first) == whole[first:]
    assert batches(kind) == whole


@pytest.mark.parametrize("kind", KINDS)
def test_no_two_samples_have_the_same_seed(kind):
    whole = batches(kind)
    seeds = [seed for items in whole for _, seed in items]
    assert len(set(seeds)) == len(seeds)
    assert all(seed[:3] == (1, 2, 3) for seed in seeds)
    # Every image is seen, each epoch in another order.
    assert {index for items in whole for index, _ in items} == set(range(7))
    orders = [[index for index, _ in items] for items in whole]
    assert orders[:3] != orders[3:6]


def test_the_batches_are_those_of_the_sampler():
    plain = list(itertools.islice(sampler("aspect ratio"), 9))
    assert [[index for index, _ in items] for items in batches("aspect ratio", count=9)] == plain
    made = sampler("finite")
    epochs = []
    for epoch in range(3):
        made.sampler.set_epoch(epoch)
        epochs += list(made)
    assert [[index for index, _ in items] for items in batches("finite", count=9)] == epochs


def test_set_epoch_in_between():
    made = seeded(sampler("finite"), first_batch=4)
    iterator = iter(made)
    first = next(iterator)
    made.sampler.set_epoch(0)  # what DistSamplerSeedHook does before training
    assert [first, *itertools.islice(iterator, 9)] == batches("finite")[4:]


def test_length_is_that_of_the_sampler():
    assert len(seeded(sampler("finite"))) == 3
    assert len(seeded(sampler("finite, cut"))) == 2


def test_data_without_a_batch_is_an_error():
    made = BatchSampler(DefaultSampler(Images(2), seed=0), 3, drop_last=True)
    with pytest.raises(ValueError, match="gives no batch: fewer images than the batch size"):
        next(iter(seeded(made)))


def scramble(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def test_samples_depend_on_their_seed_alone():
    data = _SeededDataset(Images())
    scramble(1)
    first = data[(4, (1, 0, 0, 2))]
    scramble(2)
    assert data[(4, (1, 0, 0, 2))] == first
    other = data[(4, (1, 0, 0, 3))]
    assert all(other[key] != first[key] for key in ("python", "numpy", "torch"))


@pytest.mark.parametrize("fails", [False, True])
def test_the_global_random_state_is_left_alone(fails, monkeypatch):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), float(torch.rand(()))

    data = _SeededDataset(Images())
    scramble(5)
    np.random.randn()  # leaves half of a pair behind in NumPy's state
    expected = draw()
    scramble(5)
    np.random.randn()
    if fails:
        with pytest.raises(IndexError):
            monkeypatch.setattr(Images, "__getitem__", lambda self, i: [random.random()][1])
            data[(0, (1, 2))]
    else:
        data[(0, (1, 2))]
    assert draw() == expected


def make_loader(first=0, workers=0, rank=0, seed=3, kind="InfiniteSampler"):
    cfg = dict(
        dataset=Images(),
        batch_size=2,
        num_workers=workers,
        sampler=dict(type=kind, shuffle=True),
        collate_fn=pseudo_collate,
        persistent_workers=workers > 0,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loops, "get_rank", lambda: rank)
        return training_dataloader(cfg, seed, first_batch=first)


def take(loader, count):
    return list(itertools.islice(loader, count))


@pytest.mark.parametrize(("workers", "kind"), [(0, "DefaultSampler"), (2, "InfiniteSampler")])
def test_loader_goes_on_where_it_stopped(workers, kind):
    scramble(0)
    whole = take(make_loader(kind=kind), 10)
    scramble(1)
    resumed = make_loader(6, workers, kind=kind)
    assert take(resumed, 4) == whole[6:]
    if not workers:
        assert len(resumed.dataset.read) == sum(len(batch["index"]) for batch in whole[6:])


def test_augmentation_seeds_differ():
    loaders = [make_loader(rank=0), make_loader(rank=1), make_loader(seed=4)]
    values = [
        value
        for loader in loaders
        for batch in take(loader, 6)
        for value in (*batch["python"], *batch["numpy"], *batch["torch"])
    ]
    assert len(values) == 3 * 6 * 2 * 3 and len(set(values)) == len(values)


def test_seeded_dataset_is_transparent():
    data = _SeededDataset(Images())
    assert data.size == len(data) == 7
    again = pickle.loads(pickle.dumps(data))
    assert again[(1, (2, 3))] == data[(1, (2, 3))]
    with pytest.raises(AttributeError, match="metainfo"):
        _ = data.metainfo


def advance_by_next(iterator, steps):
    """As mmengine's loop does it."""
    for _ in range(steps):
        next(iterator)


@pytest.mark.parametrize("advance", [advance_by_next, _ResumedIterator.skip_iter])
def test_resumed_iterator(advance):
    iterator = _ResumedIterator(iter("ab"), 3)
    advance(iterator, 3)
    assert list(iterator) == ["a", "b"]


def test_every_option_of_a_data_loader_is_used():
    """Every option of the config reaches the loader of torch."""

    def start(worker_id, extra):
        pass

    generator = torch.Generator().manual_seed(1)
    options = dict(
        num_workers=2,
        prefetch_factor=3,
        persistent_workers=True,
        pin_memory=True,
        timeout=7,
        multiprocessing_context="spawn",
        generator=generator,
    )
    cfg = dict(
        dataset=dict(type=Images, size=9),
        batch_size=4,
        drop_last=True,
        sampler=dict(type="DefaultSampler", shuffle=False),
        collate_fn=dict(type="default_collate"),
        worker_init_fn=dict(type=start, extra=1),
        num_batch_per_epoch=2,
        **options,
    )
    loader = training_dataloader(cfg, seed=1, endless=False)
    assert len(loader.dataset) == 8 and len(loader) == 2
    assert loader.batch_sampler.batch_sampler.drop_last
    assert loader.collate_fn.func is default_collate
    (init,) = loader.worker_init_fn.args
    assert init.func is start and init.keywords == dict(extra=1)
    for name, value in options.items():
        found = getattr(loader, name)
        if name == "multiprocessing_context":
            found = found.get_start_method()
        elif name == "generator":
            found, value = found.initial_seed(), value.initial_seed()
        assert found == value, name
    assert cfg["drop_last"] is True, "the config stays as it is"


def test_batch_sampler_of_a_config():
    cfg = dict(
        dataset=dict(type=Images),
        batch_size=2,
        num_workers=0,
        sampler=dict(type="InfiniteSampler", seed=3),
        batch_sampler=dict(type=AspectRatioBatchSampler),
    )
    loader = training_dataloader(cfg, seed=3)
    plain = list(itertools.islice(sampler("aspect ratio"), 5))
    assert [batch["index"] for batch in take(loader, 5)] == plain


def test_built_data_loader_is_refused():
    with pytest.raises(TypeError, match="give train_dataloader as a config"):
        training_dataloader(DataLoader(Images()), seed=1)


def test_steps_are_seeded_apart_from_samples():
    drawn = []
    for key in ((0, 3, 0, 1), (1, 3, 0, 1), (0, 3, 1, 1), (0, 3, 0, 2)):
        loops._seed_all(key)
        drawn += [random.random(), np.random.rand(), float(torch.rand(()))]
    assert len(set(drawn)) == len(drawn)
    loops._seed_all((0, 3, 0, 1))
    assert [random.random(), np.random.rand(), float(torch.rand(()))] == drawn[:3]


def test_resumed_training_is_exact(toy, tmp_path):
    resumed = runner(tmp_path, name="resumed", resume=True, load_from=str(tmp_path / "iter_4.pth"))
    loaded = []
    resumed.model.distill.load_resume_state = loaded.append
    resumed.train()
    assert len(loaded) == 1 and list(loaded[0]) == ["last"]
    assert len(resumed.train_dataloader.dataset.read) == 3, "nothing is read again"
    for key, value in toy.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    for name in ("train/loss", "train/lr"):
        whole, again = history(toy, name), history(resumed, name)
        assert len(whole.data[0]) == 6
        assert np.array_equal(whole.data[0], again.data[0])
        assert np.array_equal(whole.data[1], again.data[1])
        assert whole.max_length == again.max_length and whole.mean() == again.mean()
    # The milestone at step 5 came after the resume.
    assert history(resumed, "train/lr").data[0] == pytest.approx([0.1, 0.1, 0.1, 0.01, 0.01, 0.001])
    first, second = (
        torch.load(tmp_path / "iter_6.pth", weights_only=True),
        torch.load(tmp_path / "iter_4.pth", weights_only=True),
    )
    assert first["distill_resume_state"][0]["last"].shape == (3,)
    assert not torch.equal(
        first["distill_resume_state"][0]["last"], second["distill_resume_state"][0]["last"]
    )


@pytest.mark.parametrize("epochs", [None, 3])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resume_with_drawn_seed_and_accumulation(epochs, accumulate, tmp_path, restore_scope):
    """The checkpoint is from an odd iteration, in the middle of an accumulation."""
    options = dict(epochs=epochs, accumulate=accumulate, seed=None, ema=False)
    options["checkpoint"] = dict(interval=1, save_best=None)
    whole = runner(tmp_path, name="whole", **options)
    whole.train()
    checkpoint = str(tmp_path / ("iter_3.pth" if epochs is None else "epoch_1.pth"))
    saved = read_checkpoint(checkpoint)
    assert saved["meta"]["iter"] == 3 and ("accumulated_gradients" in saved) == (accumulate == 2)
    resumed = runner(tmp_path, name="resumed", resume=True, load_from=checkpoint, **options)
    assert resumed.seed != whole.seed
    resumed.train()
    assert resumed.seed == whole.seed
    read = resumed.train_dataloader.dataset.read
    assert read == whole.train_dataloader.dataset.read[-len(read) :]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key


@pytest.mark.parametrize("epochs", [None, 3])
def test_resume_of_finished_training(epochs, tmp_path, restore_scope):
    """It may have been stopped in its last evaluation."""
    runner(tmp_path, epochs=epochs).train()
    checkpoint = str(tmp_path / ("iter_6.pth" if epochs is None else "epoch_3.pth"))
    again = runner(tmp_path, name="again", epochs=epochs, resume=True, load_from=checkpoint)
    before = {key: value.clone() for key, value in again.model.state_dict().items()}
    again.train()
    assert again.message_hub.get_scalar("val/score").data[0][-1] == 0.25
    assert again.train_dataloader.dataset.read == []
    entries = [
        json.loads(line)
        for file in (tmp_path / again.timestamp).glob("vis_data/*.json")
        for line in file.read_text().splitlines()
    ]
    assert any(entry.get("score") == 0.25 for entry in entries)
    trained = torch.load(checkpoint, weights_only=True)["ema_state_dict"]
    after = again.model.state_dict()
    assert all(torch.equal(trained[f"module.{key}"], value) for key, value in after.items())
    assert before.keys() == after.keys()


def test_fewer_images_than_a_batch(tmp_path, restore_scope):
    loader = dict(
        dataset=Noise(), batch_size=8, drop_last=True, sampler=dict(type="DefaultSampler")
    )
    with pytest.raises(
        ValueError, match=r"5 training images are fewer.*set a smaller .*batch_size"
    ):
        ResumableEpochBasedTrainLoop(runner(tmp_path), loader, max_epochs=1)


def test_exact_resume_by_epoch(tmp_path, restore_scope):
    whole = runner(tmp_path, name="epochs", epochs=3)
    whole.train()
    assert whole.iter == 9 and len(whole.train_dataloader.dataset.read) == 15
    orders = [whole.train_dataloader.dataset.read[i : i + 5] for i in (0, 5, 10)]
    assert all(sorted(order) == [0, 1, 2, 3, 4] for order in orders)
    assert len({tuple(order) for order in orders}) > 1, "each epoch has its own order"
    checkpoint = str(tmp_path / "epoch_2.pth")
    resumed = runner(tmp_path, name="resumed", epochs=3, resume=True, load_from=checkpoint)
    resumed.train()
    assert resumed.train_dataloader.dataset.read == orders[2]
    for key, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[key], value), key
    first, again = (history(made, "train/loss").data[0] for made in (whole, resumed))
    assert len(first) == 9 and len(set(first)) > 4 and np.array_equal(first, again)


def test_resume_with_skip_iter(toy, tmp_path, monkeypatch):
    def run(self):
        self.runner.call_hook("before_train")
        self.runner.call_hook("before_train_epoch")
        self.dataloader_iterator.skip_iter(self._iter)
        while self._iter < self._max_iters:
            self.run_iter(next(self.dataloader_iterator))

    monkeypatch.setattr(IterBasedTrainLoop, "run", run)
    checkpoint = str(tmp_path / "iter_4.pth")
    resumed = runner(tmp_path, name="newer", resume=True, load_from=checkpoint)
    resumed.train()
    assert resumed.iter == 6 and len(resumed.train_dataloader.dataset.read) == 3
