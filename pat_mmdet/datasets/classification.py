"""Classification data of which some images cannot be read."""

from mmpretrain.datasets import CustomDataset, ImageNet
from mmpretrain.registry import DATASETS

from pat_mmdet.datasets.unreadable import UnreadableImagesMixin


@DATASETS.register_module()
class TolerantCustomDataset(UnreadableImagesMixin, CustomDataset):
    """A ``CustomDataset`` that goes on after an image that cannot be read."""


@DATASETS.register_module()
class TolerantImageNet(UnreadableImagesMixin, ImageNet):
    """An ``ImageNet`` that goes on after an image that cannot be read."""
