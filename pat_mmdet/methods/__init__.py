"""The distillation methods, one file a paper."""

from pat_mmdet.methods.base import BaseMethod
from pat_mmdet.methods.fitnet import FitNet
from pat_mmdet.methods.kd import KD
from pat_mmdet.methods.pat import PAT

__all__ = ["KD", "PAT", "BaseMethod", "FitNet"]
