"""Measures of what two networks have in common, and of what a prompt leaves of a feature."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MIN_BATCH = 4  # images, below which the unbiased HSIC is not defined


class MinibatchCKA:
    """Linear centred kernel alignment (CKA) between all features of two networks.

    It is 1 where two features are the same up to a rotation and a factor, and about 0 where they
    are independent. The unbiased estimates of HSIC are averaged over batches before the quotient,
    so that the value does not depend on the batch size.

    Sources: Kornblith et al., "Similarity of Neural Network Representations Revisited", ICML 2019
    (CKA); Nguyen et al., "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021 (batches);
    Song et al., "Feature Selection via Dependence Maximization", JMLR 2012 (estimator).

    Example:
        >>> cka = MinibatchCKA()
        >>> for images in batches:
        ...     cka.update(first(images), second(images))
        >>> cka.compute()  # (features of the first, features of the second)
    """

    def __init__(self) -> None:
        self._cross: Tensor | float = 0.0
        self._first: Tensor | float = 0.0
        self._second: Tensor | float = 0.0

    def update(self, first: Sequence[Tensor], second: Sequence[Tensor]) -> None:
        """Add a batch.

        Args:
            first (Sequence[Tensor]): Features of the first network, each (B, ...).
            second (Sequence[Tensor]): Features of the second one for the same images.

        Raises:
            ValueError: If there are fewer than 4 images.
        """
        if len(first[0]) < MIN_BATCH:
            raise ValueError(
                f"CKA needs at least {MIN_BATCH} images a batch, there are {len(first[0])}"
            )
        kernels, others = (torch.stack(list(map(_gram, maps))) for maps in (first, second))
        self._cross = self._cross + unbiased_hsic(kernels, others)
        self._first = self._first + unbiased_hsic(kernels, kernels).diagonal()
        self._second = self._second + unbiased_hsic(others, others).diagonal()

    def compute(self) -> Tensor:
        """Return the CKA of each pair of features, (S, T) on the CPU; NaN where one is constant."""
        return (self._cross / torch.outer(self._first, self._second).sqrt()).cpu()


def unbiased_hsic(first: Tensor, second: Tensor) -> Tensor:
    """Return the unbiased estimates of HSIC between kernels.

    Args:
        first (Tensor): S kernel matrices without their diagonals, (S, n, n), with n ≥ 4.
        second (Tensor): T others of the same images, (T, n, n).

    Returns:
        Tensor: Estimates, (S, T).
    """
    n = first.shape[-1]
    traces = torch.einsum("sij,tij->st", first, second)
    sums = torch.outer(first.sum((1, 2)), second.sum((1, 2)))
    rows = first.sum(2) @ second.sum(2).t()
    return (traces + sums / ((n - 1) * (n - 2)) - 2 * rows / (n - 2)) / (n * (n - 3))


def _gram(features: Tensor) -> Tensor:
    """Return the linear kernel of features (n, ...) without its diagonal, (n, n), in float64."""
    rows = features.flatten(1).float()
    rows = rows - rows.mean(0)  # changes no estimate, and keeps digits of large averages
    return (rows @ rows.t()).double().fill_diagonal_(0)


def energy_kept(prompted: Tensor, plain: Tensor) -> Tensor:
    """Return the mean square of a feature with prompts over that of the same without.

    Args:
        prompted (Tensor): Map of the first n images, (n, C, H, W).
        plain (Tensor): Map of all, (B, C, H, W).

    Returns:
        Tensor: Scalar; 0 where the plain feature is 0.
    """
    energy = plain[: len(prompted)].float().square().mean()
    return prompted.float().square().mean() / energy.clamp(min=1e-12)
