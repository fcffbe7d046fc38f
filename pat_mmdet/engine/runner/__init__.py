"""Training loops, and how they are stopped."""

from .loops import (
    ResumableEpochBasedTrainLoop,
    ResumableIterBasedTrainLoop,
    training_dataloader,
)
from .termination import StopRequest, shield_workers

__all__ = [
    "ResumableEpochBasedTrainLoop",
    "ResumableIterBasedTrainLoop",
    "StopRequest",
    "shield_workers",
    "training_dataloader",
]
