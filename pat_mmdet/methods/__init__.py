"""The distillation methods, one file a paper."""

from pat_mmdet.methods.base import BaseMethod
from pat_mmdet.methods.cc import CC
from pat_mmdet.methods.crd import CRD
from pat_mmdet.methods.cwd import CWD
from pat_mmdet.methods.dist import DIST
from pat_mmdet.methods.dkd import DKD
from pat_mmdet.methods.fitnet import FitNet
from pat_mmdet.methods.kd import KD
from pat_mmdet.methods.mgd import MGD
from pat_mmdet.methods.ofa import OFA
from pat_mmdet.methods.pat import PAT
from pat_mmdet.methods.pkd import PKD
from pat_mmdet.methods.rkd import RKD

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
