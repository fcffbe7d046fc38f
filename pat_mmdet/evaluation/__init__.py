"""Evaluation of detectors."""

from .metrics import CheckedCocoMetric, FasterCocoMetric

__all__ = ["CheckedCocoMetric", "FasterCocoMetric"]
