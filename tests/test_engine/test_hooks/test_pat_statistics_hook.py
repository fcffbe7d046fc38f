"""Statistics of PAT over training."""

import json
from types import SimpleNamespace

import pytest
import torch
from helpers.methods import normal
from helpers.pat import make_pat, pat_step
from torch import nn

from pat_mmdet.engine.hooks import PATStatisticsHook
from pat_mmdet.engine.hooks.pat_statistics_hook import explained_share, unreachable_variance
from pat_mmdet.models.layers import MapAligner, TokenAligner
from pat_mmdet.models.methods import FitNet


def test_share_explained_is_the_squared_correlation():
    teacher, noise = normal(8, 1, 9, 9, seed=1), normal(8, 1, 9, 9, seed=2)
    student = 5 * teacher + 3 * noise + 7
    r = torch.corrcoef(torch.stack([student.flatten(), teacher.flatten()]))[0, 1]
    assert explained_share(student, teacher) == pytest.approx(r.item() ** 2, rel=1e-4)
    assert explained_share(-student, teacher) == 0
    # Channels count by their variance.
    both = torch.cat([teacher, 10 * noise], 1)
    half = torch.cat([teacher, torch.zeros_like(noise)], 1)
    expected = (teacher.var() / (teacher.var() + 100 * noise.var())).item()
    assert explained_share(half, both) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("size", [(8, 8), (7, 11), (2, 3), (1, 1)])
@pytest.mark.parametrize("kind", ["map", "token"])
def test_reachable_variance(kind, size):
    grid = 3
    aligner = MapAligner(16, 12) if kind == "map" else TokenAligner(16, grid**2, 12, size)
    output = aligner(normal(6, 16, grid, grid), size).detach()
    assert unreachable_variance(output, aligner, grid) < 1e-6
    noise = normal(6, 12, *size, seed=3)
    rest = unreachable_variance(output + noise, aligner, grid)
    assert (rest > 0.1) == (size[0] * size[1] > grid**2)


def test_irreducible_distance():
    aligner, target = MapAligner(16, 12), normal(4, 12, 9, 6)
    student = aligner(normal(4, 16, 3, 3, seed=1), (9, 6)).detach()
    means = nn.functional.adaptive_avg_pool2d(target, 3)
    means = nn.functional.interpolate(means, size=(9, 6))
    removable = nn.functional.mse_loss(student, means)
    torch.testing.assert_close(
        nn.functional.mse_loss(student, target),
        removable + unreachable_variance(target, aligner, 3),
    )


def runner(folder, method, iteration=0):
    return SimpleNamespace(
        model=SimpleNamespace(distill=method), iter=iteration, max_iters=6, work_dir=str(folder)
    )


def run(folder, method, begin=0, end=6, interval=4):
    """Trains for some steps with the hook; gives the file's content."""
    hook, state = PATStatisticsHook(interval=interval), runner(folder, method, begin)
    hook.before_train(state)
    for state.iter in range(begin, end):
        hook.before_train_iter(state, 0)
        pat_step(method, seed=state.iter)
        hook.after_train_iter(state, 0)
    assert method.observer is None
    return json.loads((folder / "pat_statistics.json").read_text())


def test_recording_interval(tmp_path):
    method = make_pat(beta=0.0, afp_stages=(1,), prompted_share=0.5)
    records = run(tmp_path, method)
    assert [record["step"] for record in records] == [1, 5, 6]
    for record in records:
        assert record["energy"] == [1, 1] and record["drift"] == [0, 0]
        assert record["agreement"] == 1
        for name in ("explained", "explainable", "irreducible", "distance"):
            assert len(record[name]) == 2
        for below, above in (("explained", "explainable"), ("irreducible", "distance")):
            assert all(0 <= x <= y for x, y in zip(record[below], record[above]))
    with torch.no_grad():
        method.prompts["1"].beta.fill_(2.0)
    changed = run(tmp_path, method)[0]
    assert changed["energy"][0] == 1 != changed["energy"][1] and changed["drift"][1] > 0


def test_hook_without_prompts_and_regions(tmp_path):
    for record in run(tmp_path, make_pat(alignment="projector", afp_stages=())):
        assert set(record) == {"step", "explained", "distance"}
    for record in run(tmp_path, make_pat(distance="correlation", afp_stages=())):
        assert set(record) == {"step", "explained", "explainable", "irreducible"}


def test_resume_continues_the_records(tmp_path):
    method = make_pat()
    unbroken = run(tmp_path, method)
    assert [record["step"] for record in run(tmp_path, method, begin=4)] == [1, 5, 6]
    assert json.loads((tmp_path / "pat_statistics.json").read_text())[0] == unbroken[0]


def test_other_methods_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"the method is FitNet; .* --method pat"):
        PATStatisticsHook().before_train(runner(tmp_path, FitNet()))
