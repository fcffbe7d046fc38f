"""Data sets and the loading of images."""

from pat_mmdet.datasets.coco import CheckedCocoDataset
from pat_mmdet.datasets.transforms import LoadImageOrSkip

__all__ = ["CheckedCocoDataset", "LoadImageOrSkip"]
