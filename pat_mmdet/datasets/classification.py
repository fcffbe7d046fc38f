"""Classification data of which some images cannot be read."""

from mmpretrain.datasets import CustomDataset, ImageNet
from mmpretrain.registry import DATASETS

from pat_mmdet.datasets.unreadable import BlackForUnreadable


@DATASETS.register_module()
class TolerantCustomDataset(BlackForUnreadable, CustomDataset):
    """A ``CustomDataset`` that goes on after an image that cannot be read."""


@DATASETS.register_module()
class TolerantImageNet(BlackForUnreadable, ImageNet):
    """An ``ImageNet`` that goes on after an image that cannot be read."""
