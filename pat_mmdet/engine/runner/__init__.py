"""Training loops."""

from .loops import (
    ResumableEpochBasedTrainLoop,
    ResumableIterBasedTrainLoop,
    training_dataloader,
)

__all__ = [
    "ResumableEpochBasedTrainLoop",
    "ResumableIterBasedTrainLoop",
    "training_dataloader",
]
