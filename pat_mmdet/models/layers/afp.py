"""Adaptive feedback prompts (AFP) of PAT, and the pooled convolution that makes them cheap."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pat_mmdet.models.acceleration.onednn import onednn_linear

KERNEL = 5
PROMPTS = ("channel", "spatial")


def _trim_matrix(length: int, like: Tensor) -> Tensor:
    """Averages of a row as each tap of a padded convolution sees it, as a (length, 5) matrix.

    Column k belongs to the tap at offset k - 2. Moving over all positions, that tap touches the
    entries whose position minus the offset is still inside the row; the padding adds zeros.
    """
    position = torch.arange(length, device=like.device)[:, None]
    reader = position - torch.arange(KERNEL, device=like.device) + KERNEL // 2
    return ((reader >= 0) & (reader < length)).to(like.dtype) / length


def _resize_matrix(old: int, new: int, like: Tensor) -> Tensor:
    """Linear interpolation of a row of ``old`` entries to ``new``, as an (old, new) matrix."""
    unit = torch.eye(old, device=like.device, dtype=like.dtype)[None]
    return F.interpolate(unit, size=new, mode="linear", align_corners=False)[0]


def _resize(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resizing to (H, W), skipped where that is the size already."""
    if tuple(x.shape[-2:]) == size:
        return x
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def valid_fractions(size: tuple[int, int], like: Tensor) -> Tensor:
    """Shifted means of a map of ones: the share of positions at which each tap is inside the map.

    Args:
        size: (H, W) of the map.
        like: A tensor whose device and dtype the result gets.

    Returns:
        Fractions, shape (5, 5).
    """
    rows, columns = (_trim_matrix(length, like).sum(0) for length in size)
    return torch.outer(rows, columns)


def shifted_means(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """The 25 sums of a map that a pooled 5×5 convolution needs, divided by H·W.

    The average over all positions of a zero-padded 5×5 convolution of ``x`` is
    ``Σ_k weight[..., k] · shifted_means(x)[..., k]`` exactly, where entry (dy + 2, dx + 2) sums
    ``x`` without the |dy| rows and |dx| columns that the tap at (dy, dx) never reaches. The sums
    are separable, so two thin matrix products give all 25 in one pass over the map, and the
    gradient in one more.

    Args:
        x: Map of shape (B, C, H, W); H and W may be less than 5.
        size: If given, the result is that of ``x`` resized bilinearly (``align_corners=False``) to
            this (H, W). Resizing is linear and separable too: no resized map is built.

    Returns:
        Means of shape (B, C, 5, 5), in float32 or wider.
    """
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    batch, channels, height, width = x.shape
    # Autocast would halve the products, and the sums with them.
    with torch.autocast(x.device.type, enabled=False):
        rows, columns = (
            _trim_matrix(new, x)
            if new == old
            else _resize_matrix(old, new, x) @ _trim_matrix(new, x)
            for old, new in zip((height, width), size or (height, width))
        )
        if x.is_contiguous():
            return rows.t() @ (x @ columns)
        # Maps of token networks have the channels innermost. Products along H and W that leave
        # them there need no transposed copy of the map.
        x = rows.t() @ x.permute(0, 2, 3, 1).reshape(batch, height, width * channels)
        x = columns.t() @ x.reshape(batch * KERNEL, width, channels)
        return x.reshape(batch, KERNEL, KERNEL, channels).permute(0, 3, 1, 2)


def _pointwise_means(conv: nn.Conv2d, means: Tensor, valid: Tensor) -> Tensor:
    """Shifted means of ``conv(x)`` from those of ``x``, for a 1×1 convolution.

    The bias is added at every valid position, so it enters with the fraction of them.
    """
    if conv.groups == 1:
        # Convolution routines are slow on so small maps.
        mixed = onednn_linear(means.permute(0, 2, 3, 1), conv.weight.flatten(1)).permute(0, 3, 1, 2)
    else:
        mixed = F.conv2d(means, conv.weight, groups=conv.groups)
    return mixed + conv.bias[:, None, None] * valid


class SqueezeExcite(nn.Module):
    """The gate of squeeze-and-excitation: global average pool, reduce, ReLU, expand, sigmoid.

    Args:
        channels: Channels of the map.
        ratio: Reduction of the hidden width.
    """

    def __init__(self, channels: int, ratio: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // ratio)
        self.reduce = nn.Conv2d(channels, hidden, kernel_size=1)
        self.expand = nn.Conv2d(hidden, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Computes the gate of a map, without applying it.

        Args:
            x: Map of shape (B, C, H, W); its mean over positions is all that counts.

        Returns:
            Gate of shape (B, C, 1, 1), between 0 and 1.
        """
        x = x.mean(dim=(2, 3), keepdim=True)
        return self.expand(F.relu(self.reduce(x))).sigmoid()


class _GatedConvs(nn.Module):
    """1×1 → 5×5 → 1×1 → squeeze-excite → 1×1: the shape that the fusion and the prompt share.

    Args:
        in_channels: Channels of the input.
        channels: Channels of everything after the first convolution.
        groups: Groups of the first and the last convolution.
        kernel_groups: Groups of the 5×5 convolution.
        ratio: Reduction of the squeeze-excite gate.
        gate_only: Whether only the gate goes on, instead of the map that it multiplies.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        groups: int,
        kernel_groups: int,
        ratio: int,
        gate_only: bool,
    ) -> None:
        super().__init__()
        self.gate_only = gate_only
        self.enter = nn.Conv2d(in_channels, channels, kernel_size=1, groups=groups)
        self.spread = nn.Conv2d(
            channels, channels, KERNEL, padding=KERNEL // 2, groups=kernel_groups
        )
        self.mix = nn.Conv2d(channels, channels, kernel_size=1)
        self.gate = SqueezeExcite(channels, ratio)
        self.leave = nn.Conv2d(channels, channels, kernel_size=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """(B, in_channels, H, W) -> (B, channels, H, W), or (B, channels, 1, 1) if gate only."""
        x = self.mix(self.spread(self.enter(x)))
        gate = self.gate(x)
        return self.leave(gate if self.gate_only else x * gate)

    def from_means(self, means: Tensor, valid: Tensor) -> Tensor:
        """The gate-only result of a map of which just the shifted means are known.

        Args:
            means: ``shifted_means`` of the map, shape (B, in_channels, 5, 5).
            valid: ``valid_fractions`` of its size, shape (5, 5).

        Returns:
            What ``forward`` gives for that map, shape (B, channels, 1, 1).
        """
        means = _pointwise_means(self.enter, means, valid)
        # Unpadded, the kernel meets the 25 means once, tap by tap: the pooled convolution. With one
        # output position a dense one is a matrix product, which is much faster as such.
        if self.spread.groups == 1:
            flat = self.spread.weight.flatten(1)
            pooled = onednn_linear(means.flatten(1), flat, self.spread.bias)[..., None, None]
        else:
            pooled = (means * self.spread.weight.squeeze(1)).sum((2, 3), keepdim=True)
            pooled = pooled + self.spread.bias[:, None, None]
        return self.leave(self.gate(self.mix(pooled)))


class AdaptiveFeedbackPrompt(nn.Module):
    """A prompt at the entry of a frozen teacher stage: ``x + β·P(fuse(x, feedback))``.

    β is a learnable scalar that starts at 0, so an untrained prompt leaves the teacher as it is,
    bit for bit. The feedback is the gap between the aligned student and the teacher. Source: PAT
    paper, section "Adaptive Feedback Prompt"; ``P`` and ``fuse`` are

    * ``P``: 1×1 (groups) → 5×5 depthwise → 1×1 → squeeze-excite → 1×1 (groups);
    * ``fuse``: concat → 1×1 (2C→C) → 5×5 dense → 1×1 → squeeze-excite → 1×1. Without feedback it
      is the identity and has no parameters, so that none is left unused in distributed training.

    Everything is computed in float32 whatever autocast says: a prompt that overflows in half
    precision would give NaN even where β is 0.

    Args:
        channels: Channels of the stage's input.
        feedback_channels: Channels of the feedback; a learned 1×1 convolution adapts them where
            they differ from ``channels``. None builds a prompt without feedback.
        prompt: ``'spatial'``: the squeeze-excite gates multiply their inputs, and the prompt is a
            map. ``'channel'``: only the gates go on, and the prompt is one value per channel. All
            before the first gate is then needed as a spatial mean alone, and is computed from
            ``shifted_means`` instead of maps.
        groups: Groups of the first and last convolution of ``P``.
        ratio: Reduction of the squeeze-excite gates.

    Raises:
        ValueError: If ``prompt`` is unknown or ``channels`` is not divisible by ``groups``.
    """

    def __init__(
        self,
        channels: int,
        feedback_channels: int | None,
        prompt: str = "channel",
        groups: int = 4,
        ratio: int = 16,
    ) -> None:
        super().__init__()
        if prompt not in PROMPTS:
            raise ValueError(f"unknown prompt {prompt!r}: choose one of {', '.join(PROMPTS)}")
        if channels % groups:
            raise ValueError(
                f"channels={channels} cannot be split into groups={groups}: choose a number of "
                "groups that divides the channels of the teacher stage's input"
            )
        self.channels = channels
        self.feedback_channels = feedback_channels
        self.prompt = prompt
        gate_only = prompt == "channel"
        # Of shape (1,): optimizer settings for one-dimensional parameters hold for it.
        self.beta = nn.Parameter(torch.zeros(1))
        self.prompter = _GatedConvs(channels, channels, groups, channels, ratio, gate_only)
        if feedback_channels is not None:
            self.fuse = _GatedConvs(2 * channels, channels, 1, 1, ratio, gate_only)
            if feedback_channels != channels:
                self.adapt = nn.Conv2d(feedback_channels, channels, kernel_size=1)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Load β of earlier checkpoints too, where it has the shape ()."""
        beta = state_dict.get(prefix + "beta")
        if beta is not None and beta.ndim == 0:
            state_dict[prefix + "beta"] = beta.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def encode_feedback(self, gap: Tensor, size: tuple[int, int]) -> Tensor:
        """Reduces a gap to what ``forward`` needs of it, detached, to be kept for a later step.

        Args:
            gap: Aligned student minus teacher at the stage's end, shape (B, Cf, h, w).
            size: (H, W) of the stage's input.

        Returns:
            ``'spatial'``: the gap resized bilinearly, shape (B, Cf, H, W). ``'channel'``: the
            shifted means of the resized gap, shape (B, Cf, 5, 5), whatever its size.
        """
        gap, size = gap.detach(), tuple(size)
        return shifted_means(gap, size) if self.prompt == "channel" else _resize(gap, size)

    def forward(self, x: Tensor, feedback: Tensor | None = None) -> Tensor:
        """Adds the prompt.

        Args:
            x: Input of the stage, shape (B, C, H, W).
            feedback: What ``encode_feedback`` returned, perhaps for another batch: rows are reused
                cyclically where their number differs, and maps are resized to that of ``x``
                (shifted means are taken as they are). None stands for zeros, which pass through
                ``fuse`` all the same, so that its parameters take part in the first step.

        Returns:
            Prompted input, with the shape and dtype of ``x``.

        Raises:
            ValueError: If feedback comes to a prompt built without, or has the other form's shape.
        """
        if feedback is not None:
            self._check(feedback)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.prompt == "channel":
                prompt = self._channel_prompt(wide, feedback)
            else:
                prompt = self._spatial_prompt(wide, feedback)
            return (wide + self.beta * prompt).to(x.dtype)

    def _check(self, feedback: Tensor) -> None:
        if self.feedback_channels is None:
            raise ValueError(
                "this prompt was built without feedback: pass None, or build it with "
                "feedback_channels"
            )
        form = (self.feedback_channels, KERNEL, KERNEL)
        if self.prompt == "channel" and tuple(feedback.shape[1:]) != form:
            raise ValueError(
                f"feedback of shape {tuple(feedback.shape)} where prompt='channel' takes "
                f"(B, {', '.join(map(str, form))}): pass what `encode_feedback` returns"
            )

    def _channel_prompt(self, x: Tensor, feedback: Tensor | None) -> Tensor:
        means = shifted_means(x)
        valid = valid_fractions(x.shape[-2:], x)
        if self.feedback_channels is None:
            return self.prompter.from_means(means, valid)
        feedback = self._feedback(x, feedback, (KERNEL, KERNEL))
        if self.feedback_channels != self.channels:
            feedback = _pointwise_means(self.adapt, feedback, valid)
        return self.prompter(self.fuse.from_means(torch.cat([means, feedback], 1), valid))

    def _spatial_prompt(self, x: Tensor, feedback: Tensor | None) -> Tensor:
        if self.feedback_channels is None:
            return self.prompter(x)
        size = tuple(x.shape[-2:])
        feedback = _resize(self._feedback(x, feedback, size), size)
        if self.feedback_channels != self.channels:
            feedback = self.adapt(feedback)
        return self.prompter(self.fuse(torch.cat([x, feedback], 1)))

    def _feedback(self, x: Tensor, feedback: Tensor | None, size: tuple[int, int]) -> Tensor:
        """Feedback rows for the samples of ``x``, in its dtype; zeros of ``size`` if none."""
        batch = len(x)
        if feedback is None:
            return x.new_zeros(batch, self.feedback_channels, *size)
        if len(feedback) != batch:
            rows = torch.arange(batch, device=feedback.device) % len(feedback)
            feedback = feedback[rows]
        return feedback.to(x)
