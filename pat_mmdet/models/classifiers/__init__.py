"""Classifiers that go beyond those of mmpretrain, and networks that go beyond those of timm."""

from importlib.util import find_spec

from .pretrained_timm_classifier import PretrainedTimmClassifier

if find_spec("timm") is not None:
    from pat_mmdet.models.backbones import timm_swin  # noqa: F401

__all__ = ["PretrainedTimmClassifier"]
