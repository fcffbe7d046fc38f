"""Relational knowledge distillation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .utils import full_precision, mean, require


def _flat_rows(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten every sample; the widths of student and teacher may differ, the batch may not."""
    require(s.ndim >= 2 and t.ndim >= 2 and len(s) == len(t), "equal batch sizes (B, ...)", s, t)
    return s.flatten(1), t.flatten(1)


@full_precision
def rkd_distance_loss(s: Tensor, t: Tensor) -> Tensor:
    """Compute the distance term of relational knowledge distillation.

    Park et al., "Relational Knowledge Distillation", CVPR 2019, section 3.2.1: smooth-L1 between
    the two matrices of pairwise Euclidean distances, each divided by the mean of its non-zero
    entries, averaged over all B² pairs, the diagonal included.

    Args:
        s (Tensor): Student embeddings, (B, ...), flattened per sample.
        t (Tensor): Teacher embeddings, (B, ...); their width may differ.

    Returns:
        Tensor: Scalar. Pairs of equal rows send no gradient.

    Raises:
        ValueError: The batch sizes differ.
    """

    def distances(x: Tensor) -> Tensor:
        # Without the Gram matrix, so that equal rows are exactly 0 apart: sqrt() of rounding noise
        # has a huge gradient. By 16 rows, as the backward pass on CUDA stores all differences.
        mode = "donot_use_mm_for_euclid_dist"
        d = torch.cat([torch.cdist(rows, x, compute_mode=mode) for rows in x.split(16)])
        mean = d.sum() / (d > 0).sum().clamp(min=1)
        return d / mean.masked_fill(mean == 0, 1.0)

    s, t = _flat_rows(s, t)
    return mean(F.smooth_l1_loss(distances(s), distances(t), reduction="none"))


def _angle_cosines(x: Tensor, vertices: Tensor) -> Tensor:
    """Compute cosines (c, B, B) of the angles between rows (B, D), seen from vertices (c, D)."""
    edges = x - vertices[:, None]
    length = torch.linalg.vector_norm(edges, dim=-1, keepdim=True)
    # An edge between equal points has no direction: dividing it by infinity makes edge and gradient
    # zero, where a small constant would multiply the gradient by 1e12.
    unit = edges / length.masked_fill(length <= 1e-12, math.inf)
    return unit @ unit.transpose(1, 2)


def _angle_chunk(s: Tensor, t: Tensor, vertices_s: Tensor, vertices_t: Tensor) -> Tensor:
    """Sum the angle term over the vertices of a chunk."""
    cosines_s, cosines_t = _angle_cosines(s, vertices_s), _angle_cosines(t, vertices_t)
    return F.smooth_l1_loss(cosines_s, cosines_t, reduction="sum")


@full_precision
def rkd_angle_loss(s: Tensor, t: Tensor, chunk_size: int = 16) -> Tensor:
    """Compute the angle term of relational knowledge distillation.

    Park et al., "Relational Knowledge Distillation", CVPR 2019, section 3.2.2: smooth-L1
    between the cosines of the angles that samples j and k form at sample i, averaged over all B³
    triplets. Degenerate angles (equal points) have cosine 0.

    The vertices i are taken ``chunk_size`` at a time and a chunk's intermediate tensors are
    computed again in the backward pass: memory is O(chunk_size · B · (B + D)) instead of
    O(B² · (B + D)), and the gradient is exact.

    Args:
        s (Tensor): Student embeddings, (B, ...), flattened per sample.
        t (Tensor): Teacher embeddings, (B, ...); their width may differ.
        chunk_size (int): Number of vertices at a time.

    Returns:
        Tensor: Scalar.

    Raises:
        ValueError: The batch sizes differ.
    """
    s, t = _flat_rows(s, t)
    sums = [
        # There is no random number in a chunk, and saving the generator's state would stall it.
        checkpoint(_angle_chunk, s, t, *vertices, use_reentrant=False, preserve_rng_state=False)
        for vertices in zip(s.split(chunk_size), t.split(chunk_size))
    ]
    return torch.stack(sums).sum() / max(len(s) ** 3, 1)
