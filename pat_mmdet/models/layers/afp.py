"""Adaptive feedback prompts (AFP) of PAT."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .projectors import resize

KERNEL = 5
PROMPTS = ("channel", "spatial")


def _trim_matrix(length: int, like: Tensor) -> Tensor:
    """Return the averages of a row that the taps of a padded convolution see: (length, 5).

    Column k belongs to the tap at offset k - 2. Moving over all positions, that tap touches the
    entries whose position minus the offset is still inside the row; the padding adds zeros.
    """
    position = torch.arange(length, device=like.device)[:, None]
    reader = position - torch.arange(KERNEL, device=like.device) + KERNEL // 2
    return ((reader >= 0) & (reader < length)).to(like.dtype) / length


def _resize_matrix(old: int, new: int, like: Tensor) -> Tensor:
    """Return the linear interpolation of ``old`` entries to ``new``, as an (old, new) matrix."""
    unit = torch.eye(old, device=like.device, dtype=like.dtype)[None]
    return F.interpolate(unit, size=new, mode="linear", align_corners=False)[0]


def valid_fractions(size: tuple[int, int], like: Tensor) -> Tensor:
    """Return the share of positions at which each tap of a 5×5 convolution is inside the map.

    These are the shifted means of a map of ones.

    Args:
        size (tuple[int, int]): (H, W) of the map.
        like (Tensor): A tensor of the device and dtype of the result.

    Returns:
        Tensor: Fractions, shape (5, 5).
    """
    rows, columns = (_trim_matrix(length, like).sum(0) for length in size)
    return torch.outer(rows, columns)


def shifted_means(x: Tensor, size: tuple[int, int] | None = None) -> Tensor:
    """Return the 25 sums of a map that a pooled 5×5 convolution needs, divided by H·W.

    The average over all positions of a zero-padded 5×5 convolution of ``x`` is
    ``Σ_k weight[..., k] · shifted_means(x)[..., k]`` exactly, where entry (dy + 2, dx + 2) sums
    ``x`` without the ``|dy|`` rows and ``|dx|`` columns that the tap at (dy, dx) never reaches.
    The sums are separable, so two thin matrix products give all 25 in one pass over the map, and
    the gradient in one more.

    Args:
        x (Tensor): Map of shape (B, C, H, W); H and W may be less than 5.
        size (tuple[int, int], optional): If given, the result is that of ``x`` resized bilinearly
            (``align_corners=False``) to this (H, W). Resizing is linear and separable too: no
            resized map is built.

    Returns:
        Tensor: Means of shape (B, C, 5, 5), in float32 or wider.
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


class SqueezeExcite(nn.Module):
    """The gate of squeeze-and-excitation: global average pool, reduce, ReLU, expand, sigmoid.

    Args:
        channels (int): Channels of the map.
        ratio (int): Reduction of the hidden width.
    """

    def __init__(self, channels: int, ratio: int = 16) -> None:
        super().__init__()
        hidden = max(1, channels // ratio)
        self.reduce = nn.Conv2d(channels, hidden, kernel_size=1)
        self.expand = nn.Conv2d(hidden, channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """Compute the gate of a map, without applying it.

        Args:
            x (Tensor): Map of shape (B, C, H, W); only its mean over positions counts.

        Returns:
            Tensor: Gate of shape (B, C, 1, 1), between 0 and 1.
        """
        x = x.mean(dim=(2, 3), keepdim=True)
        return self.expand(F.relu(self.reduce(x))).sigmoid()


class _GatedConvs(nn.Module):
    """1×1 → 5×5 → 1×1 → squeeze-excite → 1×1: the layers of both the fusion and the prompt.

    Args:
        in_channels (int): Channels of the input.
        channels (int): Channels of everything after the first convolution.
        groups (int): Groups of the first and the last convolution.
        kernel_groups (int): Groups of the 5×5 convolution.
        ratio (int): Reduction of the squeeze-excite gate.
    """

    padding = KERNEL // 2

    def __init__(
        self, in_channels: int, channels: int, groups: int, kernel_groups: int, ratio: int
    ) -> None:
        super().__init__()
        self.enter = nn.Conv2d(in_channels, channels, kernel_size=1, groups=groups)
        self.spread = nn.Conv2d(
            channels, channels, KERNEL, padding=self.padding, groups=kernel_groups
        )
        self.mix = nn.Conv2d(channels, channels, kernel_size=1)
        self.gate = SqueezeExcite(channels, ratio)
        self.leave = nn.Conv2d(channels, channels, kernel_size=1, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, channels, H, W)."""
        x = self.mix(self.spread(self.enter(x)))
        return self.leave(x * self.gate(x))


class _PooledGatedConvs(_GatedConvs):
    """The same layers where only the gate is passed on, which needs the map's mean alone.

    The mean of the 5×5 convolution follows from 25 numbers a channel, see :func:`shifted_means`:
    no map is convolved.
    """

    padding = 0  # the kernel meets the 25 means once, tap by tap

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:  # type: ignore[override]
        """Compute the layers' output from the averages of a map.

        Args:
            x (Tensor): Averages of the map over the positions that each tap reaches, shape
                (B, in_channels, 5, 5), or (B, in_channels, 1, 1) if they are equal. Averages
                commute with 1×1 convolutions, biases included.
            valid (Tensor): ``valid_fractions`` of the map's size, shape (5, 5).

        Returns:
            Tensor: Output, shape (B, channels, 1, 1).
        """
        x = self.mix(self.spread(self.enter(x) * valid))
        return self.leave(self.gate(x))


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
        channels (int): Channels of the stage's input.
        feedback_channels (int, optional): Channels of the feedback; a learned 1×1 convolution
            adapts them where they differ from ``channels``. None builds a prompt without feedback.
        prompt (str): ``'spatial'``: the squeeze-excite gates multiply their inputs, and the prompt
            is a map. ``'channel'``: only the gates are passed on, and the prompt is one value per
            channel. Everything before the first gate is then needed as a spatial mean alone: x and
            feedback enter as ``shifted_means``, exact and small enough to be stored.
        groups (int): Groups of the first and last convolution of ``P``.
        ratio (int): Reduction of the squeeze-excite gates.

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
        convs = _PooledGatedConvs if prompt == "channel" else _GatedConvs
        # Of shape (1,): optimizer settings for one-dimensional parameters hold for it.
        self.beta = nn.Parameter(torch.zeros(1))
        self.prompter = convs(channels, channels, groups, channels, ratio)
        if feedback_channels is not None:
            self.fuse = convs(2 * channels, channels, 1, 1, ratio)
            if feedback_channels != channels:
                self.adapt = nn.Conv2d(feedback_channels, channels, kernel_size=1)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        """Load β of earlier checkpoints too, where it has the shape ()."""
        beta = state_dict.get(prefix + "beta")
        if beta is not None and beta.ndim == 0:
            state_dict[prefix + "beta"] = beta.reshape(1)
        super()._load_from_state_dict(state_dict, prefix, *args)

    def encode_feedback(self, gap: Tensor, size: tuple[int, int]) -> Tensor:
        """Reduce a gap to what ``forward`` needs of it, detached, to be stored for a later step.

        Args:
            gap (Tensor): Aligned student minus teacher at the stage's end, shape (B, Cf, h, w).
            size (tuple[int, int]): (H, W) of the stage's input.

        Returns:
            Tensor: ``'spatial'``: the gap resized bilinearly, shape (B, Cf, H, W). ``'channel'``:
                the shifted means of the resized gap, shape (B, Cf, 5, 5), whatever its size.
        """
        encode = shifted_means if self.prompt == "channel" else resize
        return encode(gap.detach(), (size[0], size[1]))

    def forward(self, x: Tensor, feedback: Tensor | None = None) -> Tensor:
        """Add the prompt.

        Args:
            x (Tensor): Input of the stage, shape (B, C, H, W).
            feedback (Tensor, optional): What ``encode_feedback`` returned, perhaps for another
                batch: rows are recycled cyclically where their number differs, and maps are resized
                to that of ``x`` (shifted means are taken as they are). None stands for zeros, which
                pass through ``fuse`` all the same, so that its parameters take part in the first
                step.

        Returns:
            Tensor: Prompted input, with the shape and dtype of ``x``.

        Raises:
            ValueError: If a prompt built without feedback gets one, or the feedback has the shape
                of the other kind of prompt.
        """
        if feedback is not None:
            self._check_feedback(feedback)
        with torch.autocast(x.device.type, enabled=False):
            wide = x.to(torch.promote_types(x.dtype, torch.float32))
            if self.prompt == "channel":
                prompt = self._channel_prompt(wide, feedback)
            else:
                prompt = self._spatial_prompt(wide, feedback)
            return (wide + self.beta * prompt).to(x.dtype)

    def _check_feedback(self, feedback: Tensor) -> None:
        """Raise a ValueError if the feedback is not meant for this prompt."""
        if self.feedback_channels is None:
            raise ValueError(
                "this prompt was built without feedback: pass None, or build it with "
                "feedback_channels"
            )
        expected = (self.feedback_channels, KERNEL, KERNEL)
        if self.prompt == "channel" and tuple(feedback.shape[1:]) != expected:
            raise ValueError(
                f"feedback of shape {tuple(feedback.shape)} where prompt='channel' takes "
                f"(B, {', '.join(map(str, expected))}): pass what `encode_feedback` returns"
            )

    def _channel_prompt(self, x: Tensor, feedback: Tensor | None) -> Tensor:
        """Compute the prompt (B, C, 1, 1) of a map (B, C, H, W)."""
        valid = valid_fractions(x.shape[-2:], x)
        # From sums over the reached positions to averages; 0 where a small map has none.
        reached = valid.masked_fill(valid == 0, 1.0)
        x = shifted_means(x) / reached
        if self.feedback_channels is not None:
            feedback = self._batched(feedback, x, (KERNEL, KERNEL)) / reached
            if self.feedback_channels != self.channels:
                feedback = self.adapt(feedback)
            x = self.fuse(torch.cat([x, feedback], 1), valid)
            valid = valid_fractions((1, 1), x)
        return self.prompter(x, valid)

    def _spatial_prompt(self, x: Tensor, feedback: Tensor | None) -> Tensor:
        """Compute the prompt (B, C, H, W) of a map of this shape."""
        if self.feedback_channels is not None:
            size = tuple(x.shape[-2:])
            feedback = resize(self._batched(feedback, x, size), size)
            if self.feedback_channels != self.channels:
                feedback = self.adapt(feedback)
            x = self.fuse(torch.cat([x, feedback], 1))
        return self.prompter(x)

    def _batched(self, feedback: Tensor | None, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return a row of feedback for each sample of ``x``, in its dtype; zeros if there is none.

        Args:
            feedback (Tensor, optional): Feedback of any batch size.
            x (Tensor): Samples to pair it with, shape (B, ...).
            size (tuple[int, int]): (H, W) of the zeros.
        """
        batch = len(x)
        if feedback is None:
            return x.new_zeros(batch, self.feedback_channels, *size)
        if len(feedback) != batch:
            rows = torch.arange(batch, device=feedback.device) % len(feedback)
            feedback = feedback[rows]
        return feedback.to(x)
