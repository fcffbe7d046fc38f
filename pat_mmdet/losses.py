"""Distillation losses as pure functions of tensors; nothing here knows a network or a config.

``s`` is the student's tensor, ``t`` the teacher's. Three rules hold for every function:

* Half precision inputs are upcast once and autocast is off inside, so that exponentials,
  logarithms and squares are float32 terms; float32 and float64 inputs keep their type.
* Nothing is detached except in :func:`ofa_loss`. Some methods train a layer on the teacher's side
  (CC, CRD), PAT trains prompts through it: whoever wants no gradient there detaches ``t``.
* An empty batch gives a zero that is still connected to its inputs, so that every parameter gets
  a gradient whatever was sampled.

None of them waits for the device: no ``.item()``, no branch on a value, no boolean indexing.
"""

from __future__ import annotations

import functools
import math
from typing import Any, Callable, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

__all__ = [
    "correlation_loss",
    "crd_loss",
    "dist_loss",
    "dkd_loss",
    "hcl_loss",
    "kd_loss",
    "ofa_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
]

# The published implementations of DIST and CRD use these constants, and neither is negligible
# (a rare class has a tiny column norm), so they belong to the definition of the loss.
_PEARSON_EPS = 1e-8
_CRD_EPS = 1e-7

_Loss = TypeVar("_Loss", bound=Callable[..., Tensor])


def _full_precision(loss: _Loss) -> _Loss:
    """Run ``loss`` without autocast, on tensors of at least float32."""

    def upcast(value: Any) -> Any:
        half = isinstance(value, Tensor) and value.dtype in (torch.float16, torch.bfloat16)
        return value.float() if half else value

    @functools.wraps(loss)
    def wrapper(*args: Any, **kwargs: Any) -> Tensor:
        tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
        device = tensors[0].device.type if tensors else "cpu"
        with torch.autocast(device_type=device, enabled=False):
            return loss(*map(upcast, args), **{k: upcast(v) for k, v in kwargs.items()})

    return wrapper  # type: ignore[return-value]


def _require(condition: bool, expected: str, s: Tensor, t: Tensor) -> None:
    if not condition:
        raise ValueError(
            f"expected {expected}, got student {tuple(s.shape)} and teacher {tuple(t.shape)}"
        )


def _check_logits(s: Tensor, t: Tensor, target: Tensor | None = None) -> None:
    _require(s.ndim == 2 and s.shape == t.shape, "two (N, K) matrices of equal shape", s, t)
    if target is not None and target.shape != s.shape[:1]:
        # gather() accepts a target that is too short without a word.
        raise ValueError(
            f"expected class indices of shape {(len(s),)}, got target {tuple(target.shape)} "
            f"for logits {tuple(s.shape)}"
        )


def _mean(x: Tensor) -> Tensor:
    """Mean over all elements; 0 instead of NaN where there is none."""
    return x.sum() / max(x.numel(), 1)


def _kl_divergence(s: Tensor, t: Tensor) -> Tensor:
    """Batch mean of ``KL(softmax(t) ‖ softmax(s))`` for (N, K) logits."""
    kl = F.kl_div(s.log_softmax(1), t.log_softmax(1), reduction="sum", log_target=True)
    return kl / max(len(s), 1)


@_full_precision
def kd_loss(s: Tensor, t: Tensor, temperature: float = 1.0) -> Tensor:
    """Knowledge distillation on softened logits.

    Hinton et al., "Distilling the Knowledge in a Neural Network", 2015, section 2:
    ``T² · KL(softmax(t/T) ‖ softmax(s/T))``. T² keeps the gradient's size when T changes.

    Args:
        s: Logits that learn, (N, K).
        t: Logits of the target distribution, (N, K). They receive a gradient if they have a graph.
        temperature: T.

    Returns:
        Scalar, the mean over the N rows.

    Raises:
        ValueError: The logits are not two matrices of equal shape.
    """
    _check_logits(s, t)
    return temperature**2 * _kl_divergence(s / temperature, t / temperature)


@_full_precision
def dkd_loss(
    s: Tensor,
    t: Tensor,
    target: Tensor,
    alpha: float = 1.0,
    beta: float = 2.0,
    temperature: float = 1.0,
) -> Tensor:
    """Decoupled knowledge distillation.

    Zhao et al., "Decoupled Knowledge Distillation", CVPR 2022, equation 7:
    ``T² · (α · TCKD + β · NCKD)``. TCKD compares how much probability the target class gets against
    all the rest together, NCKD how the rest is spread over the other classes.

    Args:
        s: Student logits, (N, K), K ≥ 2.
        t: Teacher logits, (N, K).
        target: Class indices, int64 (N,).
        alpha: Weight of TCKD.
        beta: Weight of NCKD.
        temperature: T.

    Returns:
        Scalar, the mean over the N rows.

    Raises:
        ValueError: The logits are not two matrices of equal shape with two classes or more, or
            there is not one target a row.
    """
    _check_logits(s, t, target)
    _require(s.shape[1] >= 2, "at least two classes", s, t)
    target = target[:, None]
    others = torch.arange(s.shape[1] - 1, device=s.device)
    others = others + (others >= target)  # (N, K-1): all classes but the target, in order

    def split(logits: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits / temperature
        rest = logits.gather(1, others)
        # (target, logsumexp of the rest) are logits of the binary distribution: 1 - p_target is
        # never formed, so nothing cancels when the target is certain.
        binary = torch.cat([logits.gather(1, target), rest.logsumexp(1, keepdim=True)], 1)
        return binary, rest

    (binary_s, rest_s), (binary_t, rest_t) = split(s), split(t)
    tckd = _kl_divergence(binary_s, binary_t)
    nckd = _kl_divergence(rest_s, rest_t)
    return temperature**2 * (alpha * tckd + beta * nckd)


def _pearson(a: Tensor, b: Tensor, dim: int) -> Tensor:
    """Pearson correlations along ``dim``; 0 without gradient where one side is constant."""

    def centre(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        centred = x - x.mean(dim, keepdim=True)
        norm = torch.linalg.vector_norm(centred, dim=dim)
        # What is left of a constant is rounding noise, and its gradient would be about 1e7.
        noise = 8 * torch.finfo(x.dtype).eps * torch.linalg.vector_norm(x.detach(), dim=dim)
        return centred, norm, norm <= noise

    (a, norm_a, constant_a), (b, norm_b, constant_b) = centre(a), centre(b)
    correlation = (a * b).sum(dim) / (norm_a * norm_b + _PEARSON_EPS)
    return correlation.masked_fill(constant_a | constant_b, 0.0)


@_full_precision
def dist_loss(
    s: Tensor, t: Tensor, beta: float = 1.0, gamma: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Distillation from a stronger teacher (DIST): match relations instead of values.

    Huang et al., "Knowledge Distillation from A Stronger Teacher", NeurIPS 2022, inter- and
    intra-class relation: ``T² · (β · (1 − mean row Pearson) + γ · (1 − mean column Pearson))`` of
    the softmax outputs. A row holds the classes of one image, a column one class over the batch. As
    in the published code, 1e-8 is added to the product of the norms. A constant row or column
    counts as uncorrelated and sends no gradient: one row alone costs γ whatever it is.

    Args:
        s: Student logits, (N, K).
        t: Teacher logits, (N, K).
        beta: Weight of the relation between classes (rows).
        gamma: Weight of the relation between images (columns).
        temperature: T.

    Returns:
        Scalar.

    Raises:
        ValueError: The logits are not two matrices of equal shape.
    """
    _check_logits(s, t)
    if len(s) == 0:
        # Columns without entries would count as uncorrelated and cost γ.
        return s.sum() + t.sum()
    p_s, p_t = (s / temperature).softmax(1), (t / temperature).softmax(1)
    inter = 1 - _pearson(p_s, p_t, dim=1).mean()
    intra = 1 - _pearson(p_s, p_t, dim=0).mean()
    return temperature**2 * (beta * inter + gamma * intra)


@_full_precision
def ofa_loss(
    s: Tensor, t: Tensor, target: Tensor, eps: float = 1.0, temperature: float = 1.0
) -> Tensor:
    """Adaptive target enhancement of OFA-KD.

    Hao et al., "One-for-All: Bridge the Gap Between Heterogeneous Architectures in Knowledge
    Distillation", NeurIPS 2023, "adaptive target enhancement":
    ``mean_n Σ_k −((p_t + m)^ε − m) · log p_s`` with the one-hot target m and both distributions at
    temperature T (no factor T²). ε = 1 is plain cross-entropy with the teacher; a larger ε trusts
    the target class more.

    Args:
        s: Student logits, (N, K).
        t: Teacher logits, (N, K). They never receive a gradient.
        target: Class indices, int64 (N,).
        eps: ε.
        temperature: T.

    Returns:
        Scalar, the mean over the N rows.

    Raises:
        ValueError: The logits are not two matrices of equal shape, or there is not one target a
            row.
    """
    _check_logits(s, t, target)
    # Detached: the slope of p^ε is infinite at p = 0 for ε < 1.
    p_t = (t.detach() / temperature).softmax(1)
    # Not F.one_hot, which may read the largest index back from the device.
    one_hot = torch.zeros_like(p_t).scatter(1, target[:, None], 1.0)
    weight = (p_t + one_hot) ** eps - one_hot
    return -_mean((weight * (s / temperature).log_softmax(1)).sum(1))


def _flat_rows(s: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Flatten every sample; the widths of student and teacher may differ, the batch may not."""
    _require(s.ndim >= 2 and t.ndim >= 2 and len(s) == len(t), "equal batch sizes (B, ...)", s, t)
    return s.flatten(1), t.flatten(1)


@_full_precision
def rkd_distance_loss(s: Tensor, t: Tensor) -> Tensor:
    """Distance term of relational knowledge distillation.

    Park et al., "Relational Knowledge Distillation", CVPR 2019, section 3.2.1: smooth-L1 between
    the two matrices of pairwise Euclidean distances, each divided by the mean of its non-zero
    entries, averaged over all B² pairs, the diagonal included.

    Args:
        s: Student embeddings, (B, ...), flattened per sample.
        t: Teacher embeddings, (B, ...); their width may differ.

    Returns:
        Scalar. Pairs of equal rows send no gradient.

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
    return _mean(F.smooth_l1_loss(distances(s), distances(t), reduction="none"))


def _angle_cosines(x: Tensor, vertices: Tensor) -> Tensor:
    """Cosines of the angles between all rows of ``x`` (B, D), seen from (c, D): (c, B, B)."""
    edges = x - vertices[:, None]
    length = torch.linalg.vector_norm(edges, dim=-1, keepdim=True)
    # An edge between equal points has no direction: dividing it by infinity makes edge and gradient
    # zero, where a small constant would multiply the gradient by 1e12.
    unit = edges / length.masked_fill(length <= 1e-12, math.inf)
    return unit @ unit.transpose(1, 2)


def _angle_chunk(s: Tensor, t: Tensor, vertices_s: Tensor, vertices_t: Tensor) -> Tensor:
    cosines_s, cosines_t = _angle_cosines(s, vertices_s), _angle_cosines(t, vertices_t)
    return F.smooth_l1_loss(cosines_s, cosines_t, reduction="sum")


@_full_precision
def rkd_angle_loss(s: Tensor, t: Tensor, chunk_size: int = 16) -> Tensor:
    """Angle term of relational knowledge distillation.

    Park et al., "Relational Knowledge Distillation", CVPR 2019, section 3.2.2: smooth-L1
    between the cosines of the angles that samples j and k form at sample i, averaged over all B³
    triplets. Degenerate angles (equal points) have cosine 0.

    The vertices i are taken ``chunk_size`` at a time and a chunk's intermediate tensors are
    computed again in the backward pass: memory is O(chunk_size · B · (B + D)) instead of
    O(B² · (B + D)), and the gradient is exact.

    Args:
        s: Student embeddings, (B, ...), flattened per sample.
        t: Teacher embeddings, (B, ...); their width may differ.
        chunk_size: Number of vertices at a time.

    Returns:
        Scalar.

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


@_full_precision
def correlation_loss(s: Tensor, t: Tensor) -> Tensor:
    """Correlation congruence (CC) of neighbours in the batch.

    Peng et al., "Correlation Congruence for Knowledge Distillation", ICCV 2019, in the form that
    comparisons of distillation methods have settled on:
    ``mean_i Σ_d |δ_i| · |δ_{i+1}|`` with ``δ = s − t``, over the B − 1 pairs of neighbours.

    Args:
        s: Embedded student features, (B, D).
        t: Embedded teacher features, (B, D). Their embedding is trained too: do not detach.

    Returns:
        Scalar; 0 for fewer than two samples.

    Raises:
        ValueError: The embeddings are not two matrices of equal shape.
    """
    _require(s.ndim == 2 and s.shape == t.shape, "two (B, D) matrices of equal shape", s, t)
    delta = (s - t).abs()
    return _mean((delta[:-1] * delta[1:]).sum(1))


@_full_precision
def crd_loss(
    student_scores: Tensor,
    teacher_scores: Tensor,
    z_student: Tensor,
    z_teacher: Tensor,
    temperature: float,
    num_data: int,
) -> Tensor:
    """Contrastive representation distillation, given the scores against the memory banks.

    Tian et al., "Contrastive Representation Distillation", ICLR 2020, section 3, with the noise
    contrastive estimate of the published code. For ``P = exp(score / T) / Z`` and ``c = k / n``::

        −[Σ log(P / (P + c + 1e-7)) + Σ log(c / (P_neg + c + 1e-7))] / B

    where the first sum runs over the B positives, the second over the B · k negatives; the
    student's and the teacher's direction are added.

    Scores are inner products of normalised embeddings (B, D) with the k + 1 gathered rows
    (B, k + 1, D) of the *other* network's bank: ``student_scores[b, j] = <student_b, teacher bank
    row j>``. The gathered rows are by far the largest tensor here, hence left to the caller.

    Args:
        student_scores: Student embeddings against rows of the teacher's bank, (B, k + 1), the
            sample's own row first, k ≥ 1 negatives after it. Compute them in float32.
        teacher_scores: Teacher embeddings against rows of the student's bank, (B, k + 1). The
            teacher's embedding is trained too: do not detach.
        z_student: Normalisation constant Z of the student's scores, a scalar tensor > 0: the first
            batch's ``exp(student_scores / T).mean() * num_data``, kept from then on.
        z_teacher: The same of the teacher's scores.
        temperature: T.
        num_data: n, the number of rows in a bank.

    Returns:
        Scalar.

    Raises:
        ValueError: The scores are not two matrices of equal shape with two columns or more.
    """
    s, t = student_scores, teacher_scores
    valid = s.ndim == 2 and s.shape == t.shape and s.shape[1] >= 2
    _require(valid, "two (B, k + 1) score matrices of equal shape, k >= 1", s, t)
    k = s.shape[1] - 1
    noise = k / num_data

    def direction(scores: Tensor, z: Tensor) -> Tensor:
        # P / (P + a) is the sigmoid of log P - log a: written so, exp() cannot overflow.
        logits = scores / temperature - z.log() - math.log(noise + _CRD_EPS)
        positive = F.logsigmoid(logits[:, 0])
        negative = F.logsigmoid(-logits[:, 1:]).sum(1) + k * math.log(noise / (noise + _CRD_EPS))
        return -_mean(positive + negative)

    return direction(s, z_student) + direction(t, z_teacher)


@_full_precision
def hcl_loss(s: Tensor, t: Tensor) -> Tensor:
    """Hierarchical context loss between two feature maps.

    Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3.3: mean squared
    error at full resolution (weight 1), plus that of the maps pooled to 4×4, 2×2 and 1×1 with
    weights ½, ¼, ⅛, divided by the sum of the weights. A level is skipped where its side reaches
    the map's height; the weight halves only at levels used.

    Args:
        s: Student map, (B, C, H, W).
        t: Teacher map, (B, C, H, W). It receives a gradient if it has a graph.

    Returns:
        Scalar.

    Raises:
        ValueError: The maps are not of equal shape (B, C, H, W).
    """
    _require(s.ndim == 4 and s.shape == t.shape, "two (B, C, H, W) maps of equal shape", s, t)
    return _HierarchicalContext.apply(s, t)


class _HierarchicalContext(torch.autograd.Function):
    """:func:`hcl_loss` in few passes over the maps, of which one, their gap, is kept.

    Pooling is linear: one matrix product gives the averages of all levels, and one adds their
    gradients to that of the gap.
    """

    @staticmethod
    def forward(ctx: Any, s: Tensor, t: Tensor) -> Tensor:
        # What has the channels innermost (token networks) stays so: rows of channels, not of
        # positions. The order of the target decides for both.
        gap = t - s
        batch, channels, height, width = ctx.shape = gap.shape
        sides = tuple(side for side in (4, 2, 1) if side < height)
        pool = _pooling(sides, height, width, gap.dtype, gap.device)
        ctx.innermost = not gap.is_contiguous()
        if ctx.innermost:
            gap = gap.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
            pooled = pool @ gap
        else:
            gap = gap.view(batch * channels, height * width)
            pooled = gap @ pool.t()
        weights = 2 - 0.5 ** len(sides)
        maps = max(batch * channels, 1)
        ctx.scales = 1 / (weights * maps * max(height * width, 1)), 1 / (weights * maps)
        ctx.save_for_backward(gap, pooled, pool)
        dense = torch.linalg.vector_norm(gap, dim=-1).square().sum()
        return ctx.scales[0] * dense + ctx.scales[1] * pooled.square().sum()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        gap, pooled, pool = ctx.saved_tensors
        batch, channels, height, width = ctx.shape
        beta, alpha = (2 * scale for scale in ctx.scales)
        if ctx.innermost:
            pool = pool.t().expand(batch, -1, -1)
            full = torch.baddbmm(gap, pool, pooled, beta=beta, alpha=alpha)
            full = full.view(batch, height, width, channels).permute(0, 3, 1, 2)
        else:
            full = torch.addmm(gap, pooled, pool, beta=beta, alpha=alpha).view(ctx.shape)
        full = full.mul_(gradient)
        return (
            -full if ctx.needs_input_grad[0] else None,
            full if ctx.needs_input_grad[1] else None,
        )


@functools.lru_cache(16)  # that of P2 takes 5 MB
@torch.no_grad()
def _pooling(
    sides: tuple[int, ...], height: int, width: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Adaptive average pooling to several square sizes at once, as a matrix.

    Args:
        sides: Sides of the pooled maps; the n-th has the weight 0.5 ** n in the loss.
        height: Of the map.
        width: Of the map.
        dtype: Of the result.
        device: Of the result.

    Returns:
        Averages times the roots of their weights, shape (N, height * width) with N the number of
        pooled values.
    """
    like = dict(dtype=dtype, device=device)
    levels = [torch.zeros(0, height * width, **like)]
    for n, side in enumerate(sides, 1):
        rows, columns = (
            F.adaptive_avg_pool1d(torch.eye(length, **like)[None], side)[0].t()
            for length in (height, width)
        )
        levels.append(torch.kron(rows, columns) * (0.5**n / side**2) ** 0.5)
    return torch.cat(levels)
