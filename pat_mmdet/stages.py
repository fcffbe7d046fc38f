"""Where the stages of each architecture begin, and the layout of the features there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Stage:
    """The entry of one stage.

    Attributes:
        begin (str): Path of the module whose input is the stage's input.
        layout (str): ``'NCHW'`` for maps, ``'NLC'`` for tokens whose (H, W) is the module's
            second argument.
    """

    begin: str
    layout: str = "NCHW"

    def __post_init__(self) -> None:
        if self.layout not in ("NCHW", "NLC"):
            raise ValueError(
                f"stage {self.begin!r}: unknown layout {self.layout!r}; known: NCHW, NLC"
            )


# Names of mmdet and mmpretrain backbone classes; classes derived from them are found too.
_BACKBONE_STAGES: dict[str, tuple[tuple[str, ...], str]] = {
    "SwinTransformer": (("stages.0", "stages.1", "stages.2", "stages.3"), "NLC"),
    "ResNet": (("layer1", "layer2", "layer3", "layer4"), "NCHW"),
    # mmpretrain keeps the downsampling of ConvNeXt outside its stages.
    "ConvNeXt": (
        ("stages.0", "downsample_layers.1", "downsample_layers.2", "downsample_layers.3"),
        "NCHW",
    ),
    "MobileNetV2": (("layer1", "layer3", "layer4", "layer6"), "NCHW"),
}


def backbone_stages(backbone: nn.Module, prefix: str = "backbone") -> tuple[Stage, ...]:
    """Looks up the stages of a backbone by its class.

    Args:
        backbone (nn.Module): A backbone of mmdet or mmpretrain.
        prefix (str): Path of the backbone inside its network.

    Returns:
        tuple[Stage, ...]: Its stages from shallow to deep, without those it was built without.

    Raises:
        ValueError: If the architecture is not in the table.
    """
    for cls in type(backbone).__mro__:
        if cls.__name__ in _BACKBONE_STAGES:
            paths, layout = _BACKBONE_STAGES[cls.__name__]
            modules = dict(backbone.named_modules())
            return tuple(Stage(f"{prefix}.{path}", layout) for path in paths if path in modules)
    raise ValueError(
        f"the stages of {type(backbone).__name__} are not known "
        f"(known: {', '.join(sorted(_BACKBONE_STAGES))}). Name them in the config: "
        "model.teacher_stages=[dict(begin='backbone.<module>', layout='NCHW'), ...]"
    )


def tokens_to_map(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Turns tokens (B, H·W, C), in row order, into a map (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, tuple(size))


def map_to_tokens(features: Tensor) -> Tensor:
    """Turns a map (B, C, H, W) into tokens (B, H·W, C), in row order."""
    return features.flatten(2).transpose(1, 2)
