"""Backbones that MMDetection and timm do not have in the form that is needed here."""

from .headless_mobilenet_v2 import HeadlessMobileNetV2

__all__ = ["HeadlessMobileNetV2"]
