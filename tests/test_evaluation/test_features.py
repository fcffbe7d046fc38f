from itertools import permutations

import pytest
import torch
from helpers.methods import normal

from pat_mmdet.evaluation.features import MinibatchCKA, energy_kept, unbiased_hsic


def cka(first, second, batch_size=8):
    measure = MinibatchCKA()
    for x, y in zip(first.split(batch_size), second.split(batch_size)):
        measure.update([x], [y])
    return measure.compute().item()


def kernel(n, seed):
    rows = normal(n, 3, seed=seed).double()
    return (rows @ rows.t()).fill_diagonal_(0)


def test_hsic_is_the_mean_over_distinct_images():
    first, second = torch.stack([kernel(6, 1), kernel(6, 2)]), kernel(6, 3)[None]
    expected = [
        sum(x[i, j] * (y[i, j] + y[q, r] - 2 * y[i, q]) for i, j, q, r in permutations(range(6), 4))
        / (6 * 5 * 4 * 3)
        for x in first
        for y in second
    ]
    torch.testing.assert_close(unbiased_hsic(first, second).flatten(), torch.stack(expected))


def test_cka_of_equal_features():
    x = normal(32, 6, 5, 5, seed=1)
    rotation = torch.linalg.qr(normal(150, 150, seed=2))[0]
    moved = -3 * x.flatten(1) @ rotation + 7
    assert cka(x, x) == pytest.approx(1, abs=1e-6)
    assert cka(x, moved) == pytest.approx(1, abs=1e-4)
    assert cka(1e3 + x, 1e-3 * x) == pytest.approx(1, abs=1e-4)


def test_cka_of_independent_features():
    """Without bias, also where there are more channels than images."""
    first, second = normal(512, 400, seed=1), normal(512, 300, seed=2)
    assert abs(cka(first, second)) < 0.05
    both = torch.cat([first, second], 1)
    assert cka(first, both) == pytest.approx((400 / 700) ** 0.5, abs=0.05)
    # The estimate does not depend on the batches.
    assert cka(first, both, 64) == pytest.approx(cka(first, both), abs=0.03)


def test_cka_of_several_features():
    features = [normal(8, 3, 4, 4, seed=1), normal(8, 5, 2, 2, seed=2), normal(8, 7, seed=3)]
    measure = MinibatchCKA()
    measure.update(features, features[:2])
    matrix = measure.compute()
    assert matrix.shape == (3, 2) and matrix[0, 1] == pytest.approx(matrix[1, 0].item())
    with pytest.raises(ValueError, match=r"at least 4 images a batch, there are 3"):
        measure.update([normal(3, 2)], [normal(3, 2)])


def test_energy_kept():
    plain = torch.full((4, 2, 3, 3), 2.0)
    plain[2:] = 100  # of images that have no prompts
    assert energy_kept(torch.ones(2, 2, 3, 3), plain) == 0.25
    assert energy_kept(plain, plain) == 1
    assert energy_kept(torch.zeros(2, 2, 3, 3), torch.zeros(2, 2, 3, 3)) == 0
