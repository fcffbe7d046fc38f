"""Networks to export: with random weights, but with something to compare."""

import numpy as np
import torch
from mmengine.registry import MODELS, init_default_scope
from torch import nn


def varied(model):
    """Draws weights that give varied and confident predictions, so that NMS has work to do."""
    torch.manual_seed(0)
    for name, module in model.named_modules():
        leaf = name.rpartition(".")[2]
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.4, 0.9)
            nn.init.normal_(module.bias, std=0.1)
        if not isinstance(module, (nn.Conv2d, nn.Linear)):
            continue
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        if module.bias is not None:
            nn.init.normal_(module.bias, std=0.1)
        if leaf.endswith("cls"):
            nn.init.normal_(module.weight, std=0.06 if leaf == "fc_cls" else 0.02)
            nn.init.constant_(module.bias, 0 if leaf in ("rpn_cls", "fc_cls") else -3)
        if leaf.endswith("reg"):
            nn.init.normal_(module.weight, std=0.01)
            nn.init.zeros_(module.bias)
    return model.eval()


def build(cfg, scope="mmdet"):
    """Builds a network with such weights."""
    init_default_scope(scope)
    return varied(MODELS.build(cfg))


def picture(height, width, seed=0):
    """Smooth colours with sharp rectangles, (height, width, 3), uint8."""
    rng = np.random.default_rng(seed)
    rows, columns = np.linspace(0, 3, height)[:, None], np.linspace(0, 3, width)
    phases = rng.uniform(0, 6, 3)
    image = np.stack([127 + 120 * np.sin(rows * columns + phase) for phase in phases], axis=-1)
    for _ in range(12):
        y, x = rng.integers(0, (height - 8, width - 8))
        h, w = rng.integers(6, (height // 2, width // 2))
        image[y : y + h, x : x + w] = rng.uniform(0, 255, 3)
    return image.astype(np.uint8)
