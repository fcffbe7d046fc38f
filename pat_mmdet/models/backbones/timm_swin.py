"""Networks of the paper that timm does not have, registered with timm.

Source: Hao et al., One-for-All, NeurIPS 2023, section 4.1.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from timm.models.swin_transformer import SwinTransformer, _create_swin_transformer

_IMAGENET = dict(
    input_size=(3, 224, 224),
    num_classes=1000,
    pool_size=(7, 7),
    crop_pct=0.9,
    interpolation="bicubic",
    fixed_input_size=True,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    first_conv="patch_embed.proj",
    classifier="head.fc",
)

default_cfgs = generate_default_cfgs(
    {
        "swin_nano_patch4_window7_224.untrained": _IMAGENET,
        "swin_pico_patch4_window7_224.untrained": _IMAGENET,
    }
)


_WIDTHS = {"swin_nano_patch4_window7_224": 64, "swin_pico_patch4_window7_224": 48}


def _settings(name: str) -> dict[str, Any]:
    """What makes these networks of timm's Swin."""
    return dict(embed_dim=_WIDTHS[name], depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16))


def plain_settings(name: str) -> dict[str, Any]:
    """Express a network of this module by one that timm has.

    Args:
        name (str): Name of a timm model.

    Returns:
        dict: ``model_name`` and arguments of ``timm.create_model``; empty for timm's own models.
    """
    if name not in _WIDTHS:
        return {}
    return dict(model_name="swin_tiny_patch4_window7_224", **_settings(name))


def _create(name: str, pretrained: bool, **kwargs: Any) -> SwinTransformer:
    settings = dict(patch_size=4, window_size=7, **_settings(name))
    return _create_swin_transformer(name, pretrained=pretrained, **{**settings, **kwargs})


@register_model
def swin_nano_patch4_window7_224(pretrained: bool = False, **kwargs: Any) -> SwinTransformer:
    """Swin-N(ano): width 64, two blocks in each stage."""
    return _create("swin_nano_patch4_window7_224", pretrained, **kwargs)


@register_model
def swin_pico_patch4_window7_224(pretrained: bool = False, **kwargs: Any) -> SwinTransformer:
    """Swin-P(ico): width 48, two blocks in each stage."""
    return _create("swin_pico_patch4_window7_224", pretrained, **kwargs)
