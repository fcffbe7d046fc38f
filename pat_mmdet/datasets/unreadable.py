"""Data sets of which some images cannot be read."""

from __future__ import annotations

from typing import Any

import numpy as np

_SIDE = 224  # pixels, of an image whose size nothing tells


class BlackForUnreadable:
    """Mixin of data sets whose pipelines begin with ``LoadImageOrSkip``.

    That reports an image which cannot be read. In training the data set takes another one. In
    evaluation a black image takes its place, so that it counts, as missed or wrong.
    """

    test_mode: bool
    pipeline: Any
    get_data_info: Any

    def prepare_data(self, idx: int) -> dict | None:
        """Load and transform an image, or a black one in evaluation if it cannot be read."""
        data = super().prepare_data(idx)  # type: ignore[misc]
        if data is not None or not self.test_mode:
            return data
        info = self.get_data_info(idx)
        size = (info.get("height", _SIDE), info.get("width", _SIDE))
        info["img"] = np.zeros((*size, 3), dtype=np.uint8)
        info["img_shape"] = info["ori_shape"] = size
        for transform in self.pipeline.transforms[1:]:
            info = transform(info)
        return info
