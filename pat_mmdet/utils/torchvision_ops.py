"""Operators of ``mmcv._ext`` by torchvision and torch.

This file is imported as ``mmcv._ext`` where mmcv has no compiled operators (see ``mmcv_ops.py``),
so it imports nothing of this package. Functions have the names and arguments of mmcv's extension,
which writes its results into tensors of the caller. Half-precision inputs are computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

import torch
import torchvision
from torch import Tensor

_REMEDY = (
    "install mmcv with its operators: `make env MMCV=full` in a clone of pat_mmdet, elsewhere\n"
    "    pip uninstall -y mmcv-lite && MMCV_WITH_OPS=1 "
    'pip install --no-build-isolation "mmcv>=2.0.0,<2.2.0"'
)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int = 0) -> Tensor:
    """Return the indices of the boxes that non-maximum suppression keeps, by falling score.

    Args:
        boxes (Tensor): (N, 4), as x1, y1, x2, y2.
        scores (Tensor): (N,).
        iou_threshold (float): Boxes of a larger IoU with a kept one are removed.
        offset (int): 1 if x2 and y2 are the last pixels inside a box, 0 if they are its borders.

    Returns:
        Tensor: Indices (K,), int64.
    """
    dtype = torch.promote_types(_at_least_float32(boxes), _at_least_float32(scores))
    boxes, scores = boxes.to(dtype), scores.to(dtype)
    if offset:
        boxes = boxes + boxes.new_tensor((0, 0, offset, offset))
    return torchvision.ops.nms(boxes, scores, iou_threshold)


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool maps inside RoIs.

    Args:
        input (Tensor): Maps (B, C, H, W), in any memory format.
        rois (Tensor): (N, 5), as index of the map, x1, y1, x2, y2.
        output (Tensor): Receives the result (N, C, aligned_height, aligned_width).
        argmax_y (Tensor): Of max pooling, not used.
        argmax_x (Tensor): Of max pooling, not used.
        aligned_height (int): Rows of the result.
        aligned_width (int): Columns of the result.
        spatial_scale (float): Size of the maps as a share of the image.
        sampling_ratio (int): Points sampled in a bin per direction; 0: as many as it has pixels.
        pool_mode (int): 0 for the maximum, 1 for the mean of the points.
        aligned (bool): Whether pixel centres lie at half coordinates.

    Raises:
        NotImplementedError: If the maximum is asked for.
    """
    _check_mean_pooling(pool_mode)
    dtype = _at_least_float32(input)
    size = (aligned_height, aligned_width)
    output.copy_(
        torchvision.ops.roi_align(
            input.to(dtype), rois.to(dtype), size, spatial_scale, sampling_ratio, aligned
        )
    )


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Compute the gradient of :func:`roi_align_forward` with respect to its maps.

    Args:
        grad_output (Tensor): Gradient (N, C, aligned_height, aligned_width) of the result.
        rois (Tensor): As in the forward pass, like all that follows but ``grad_input``.
        argmax_y (Tensor): Not used.
        argmax_x (Tensor): Not used.
        grad_input (Tensor): Receives the gradient (B, C, H, W).
        aligned_height (int): Rows of the result.
        aligned_width (int): Columns of the result.
        spatial_scale (float): Size of the maps as a share of the image.
        sampling_ratio (int): Points sampled in a bin per direction.
        pool_mode (int): 1, the mean.
        aligned (bool): Whether pixel centres lie at half coordinates.
    """
    dtype = _at_least_float32(grad_output)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output.to(dtype),
            rois.to(dtype),
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the focal loss of every logit (Lin et al., 2017, equation 5).

    Args:
        input (Tensor): Logits (N, C).
        target (Tensor): Class indices (N,), int64; any that is none of 0 to C - 1 is background.
        weight (Tensor): Class weights, which are not supported: an empty tensor.
        output (Tensor): Receives the losses (N, C).
        gamma (float): Focusing parameter.
        alpha (float): Weight of the positives; that of the negatives is ``1 - alpha``.

    Raises:
        NotImplementedError: If there are class weights.
    """
    _check_no_class_weights(weight)
    sign, alpha_t = _sign_and_alpha(input, target, alpha)
    margin = sign * input.to(sign.dtype)  # the probability of the truth is sigmoid(margin)
    loss = -torch.nn.functional.logsigmoid(margin)
    output.copy_(alpha_t * torch.sigmoid(-margin) ** gamma * loss)


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Compute the derivative of every focal loss with respect to its logit.

    Args:
        input (Tensor): Logits (N, C).
        target (Tensor): Class indices (N,), int64.
        weight (Tensor): An empty tensor.
        grad_input (Tensor): Receives the derivatives (N, C).
        gamma (float): Focusing parameter.
        alpha (float): Weight of the positives.
    """
    sign, alpha_t = _sign_and_alpha(input, target, alpha)
    margin = sign * input.to(sign.dtype)
    loss = -torch.nn.functional.logsigmoid(margin)
    error = torch.sigmoid(-margin)
    grad_input.copy_(-sign * alpha_t * error**gamma * (gamma * (1 - error) * loss + error))


def get_compiler_version() -> str:
    """Return mmcv's entry for a missing compiler, for reports of the environment."""
    return "n/a"


def get_compiling_cuda_version() -> str:
    """Return mmcv's entry for a missing compiler, for reports of the environment."""
    return "n/a"


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _sign_and_alpha(input: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Return 1 and alpha for the logits (N, C) of the true classes, -1 and 1 - alpha elsewhere."""
    classes = torch.arange(input.shape[1], device=input.device)
    positive = (target[:, None] == classes).to(_at_least_float32(input))
    return 2 * positive - 1, (1 - alpha) + (2 * alpha - 1) * positive


def _check_mean_pooling(pool_mode: int) -> None:
    if pool_mode != 1:
        raise NotImplementedError(
            f"torchvision's RoIAlign has no pool_mode='max'. Take 'avg', or {_REMEDY}"
        )


def _check_no_class_weights(weight: Tensor) -> None:
    if weight.numel():
        raise NotImplementedError(
            f"the focal loss without mmcv's operators has no class weights; for them {_REMEDY}"
        )


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Return a stand-in for an operator that is not here; ``mmcv.ops`` looks up all of them.

    Raises:
        AttributeError: If the name cannot be that of an operator.
    """
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def missing(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError(
            f"the installed mmcv has no compiled operators, and {name!r} is not one of those that "
            f"torchvision stands in for; {_REMEDY}"
        )

    return missing
