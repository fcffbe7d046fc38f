"""Backbones that MMDetection does not have in the form that detectors need."""

from __future__ import annotations

from mmdet.models.backbones import MobileNetV2
from mmdet.registry import MODELS
from torch import Tensor


@MODELS.register_module()
class HeadlessMobileNetV2(MobileNetV2):
    """MMDetection's ``MobileNetV2`` that stops at the last stage asked for.

    The parent always runs and trains its 1280-channel head convolution. Where nothing reads it,
    its weights never get a gradient, which distributed training does not accept. Here the stages
    behind the last output are neither run nor trained. Weights are exchangeable with the parent's.
    """

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        # The parent waits until train(), after DDP has noted which parameters will have gradients.
        self._freeze_stages()

    def _freeze_stages(self) -> None:
        super()._freeze_stages()
        for name in self.layers[max(self.out_indices) + 1 :]:
            getattr(self, name).requires_grad_(False)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the maps (B, C, h, w) of the stages asked for, for images (B, 3, H, W)."""
        x = self.conv1(x)
        outputs = []
        for i, name in enumerate(self.layers[: max(self.out_indices) + 1]):
            x = getattr(self, name)(x)
            if i in self.out_indices:
                outputs.append(x)
        return tuple(outputs)
