"""The distillation methods, one file a paper."""

from pat_mmdet.models.methods.base import BaseMethod
from pat_mmdet.models.methods.cc import CC
from pat_mmdet.models.methods.crd import CRD
from pat_mmdet.models.methods.cwd import CWD
from pat_mmdet.models.methods.dist import DIST
from pat_mmdet.models.methods.dkd import DKD
from pat_mmdet.models.methods.fitnet import FitNet
from pat_mmdet.models.methods.kd import KD
from pat_mmdet.models.methods.mgd import MGD
from pat_mmdet.models.methods.ofa import OFA
from pat_mmdet.models.methods.pat import PAT
from pat_mmdet.models.methods.pkd import PKD
from pat_mmdet.models.methods.rkd import RKD

__all__ = [
    "CC",
    "CRD",
    "CWD",
    "DIST",
    "DKD",
    "KD",
    "MGD",
    "OFA",
    "PAT",
    "PKD",
    "RKD",
    "BaseMethod",
    "FitNet",
]
