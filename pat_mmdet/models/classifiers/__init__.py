"""Classifiers that go beyond those of mmpretrain."""

from .pretrained_timm_classifier import PretrainedTimmClassifier

__all__ = ["PretrainedTimmClassifier"]
