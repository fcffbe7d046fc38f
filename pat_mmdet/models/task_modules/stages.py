"""Where the stages of each architecture begin and end, and the layout of the features there."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

_LAYOUTS = ("NCHW", "NHWC", "NLC")


@dataclass(frozen=True)
class Stage:
    """One stage of a network.

    Attributes:
        begin (str): Path of the module whose input is the stage's input.
        layout (str): ``'NCHW'`` or ``'NHWC'`` for maps, ``'NLC'`` for tokens in row order.
        end (str, optional): Path of the module whose output is the stage's feature.
        grid (tuple[int, int], optional): (H, W) of tokens; without it both modules get it as
            their second argument.
        extra_tokens (int): Tokens before those of the grid, such as the class token. A prompt
            leaves them as they are, and they are no part of a feature.
    """

    begin: str
    layout: str = "NCHW"
    end: str | None = None
    grid: tuple[int, int] | None = None
    extra_tokens: int = 0

    def __post_init__(self) -> None:
        if self.layout not in _LAYOUTS:
            raise ValueError(
                f"stage {self.begin!r}: unknown layout {self.layout!r}; known: "
                f"{', '.join(_LAYOUTS)}"
            )

    def to_map(self, x: Tensor, args: Sequence) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Turns what passes the stage's modules into a map.

        Args:
            x (Tensor): Input or output of the module, in the stage's layout.
            args (Sequence): Positional arguments of the module.

        Returns:
            tuple: The map (B, C, H, W), and the function that turns such a map back.

        Raises:
            ValueError: If the tensor is not of the stage's layout, or the grid is not known.
        """
        if x.ndim != len(self.layout):
            raise ValueError(
                f"stage {self.begin!r}: layout {self.layout!r} does not fit a tensor of shape "
                f"{tuple(x.shape)}; known: {', '.join(_LAYOUTS)}"
            )
        if self.layout == "NCHW":
            return x, lambda features: features
        if self.layout == "NHWC":
            return x.permute(0, 3, 1, 2), lambda features: features.permute(0, 2, 3, 1)
        if self.grid is None and len(args) < 2:
            raise ValueError(
                f"stage {self.begin!r}: its module does not get the (H, W) of its tokens; give "
                "them as grid=(H, W)"
            )
        extra = x[:, : self.extra_tokens]
        features = tokens_to_map(x[:, self.extra_tokens :], self.grid or args[1])

        def back(features: Tensor) -> Tensor:
            tokens = map_to_tokens(features)
            return torch.cat([extra, tokens], dim=1) if self.extra_tokens else tokens

        return features, back


def resolve(network: nn.Module, path: str) -> nn.Module:
    """Finds a module by its path.

    Raises:
        ValueError: If there is no such module; the paths that come close are named.
    """
    modules = dict(network.named_modules())
    if path in modules:
        return modules[path]
    depth = path.count(".")
    candidates = [name for name in modules if name.count(".") <= depth and name]
    close = difflib.get_close_matches(path, candidates, n=5, cutoff=0.4)
    raise ValueError(
        f"{type(network).__name__} has no module {path!r}. "
        f"Paths that come close: {', '.join(close) or ', '.join(candidates[:10])}"
    )


def backbone_stages(
    backbone: nn.Module, prefix: str = "backbone", role: str = "teacher"
) -> tuple[Stage, ...]:
    """Looks up the stages of a backbone by its class.

    Args:
        backbone (nn.Module): A backbone of mmdet or mmpretrain, or a timm model.
        prefix (str): Path of the backbone inside its network.
        role (str): ``'student'`` or ``'teacher'``, for the error message.

    Returns:
        tuple[Stage, ...]: Its stages from shallow to deep, without those it was built without.

    Raises:
        ValueError: If the architecture is not known.
    """
    for cls in type(backbone).__mro__:
        library = "timm" if cls.__module__.startswith("timm.") else "OpenMMLab"
        if cls.__name__ in _STAGES[library]:
            modules = dict(backbone.named_modules())
            return tuple(
                replace(
                    stage,
                    begin=f"{prefix}.{stage.begin}",
                    end=f"{prefix}.{stage.end}" if stage.end in modules else None,
                )
                for stage in _STAGES[library][cls.__name__](backbone)
                if stage.begin in modules
            )
    known = sorted({name for table in _STAGES.values() for name in table})
    raise ValueError(
        f"the stages of {type(backbone).__name__} are not known (known: {', '.join(known)}). "
        f"Name them in the config: model.{role}_stages=[dict(begin='{prefix}.<module>', "
        f"end='{prefix}.<module>', layout='NCHW'), ...]"
    )


def tokens_to_map(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Turns tokens (B, H·W, C), in row order, into a map (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, tuple(size))


def map_to_tokens(features: Tensor) -> Tensor:
    """Turns a map (B, C, H, W) into tokens (B, H·W, C), in row order."""
    return features.flatten(2).transpose(1, 2)


def _split_blocks_into_stages(
    blocks: nn.Sequential, name: str, **settings: int | tuple
) -> list[Stage]:
    """Cuts equal blocks of tokens into four stages, after 2, 4, 10 and 12 of 12 blocks."""
    depth = len(blocks)
    ends = [max(round(depth * share / 12), i + 1) for i, share in enumerate((2, 4, 10, 12))]
    begins = [0, *ends[:-1]]
    return [
        Stage(f"{name}.{begin}", "NLC", f"{name}.{end - 1}", **settings)
        for begin, end in zip(begins, ends)
    ]


def _mm_swin(net: nn.Module) -> list[Stage]:
    return [
        Stage(f"stages.{i}", "NLC", f"stages.{i}.blocks.{len(stage.blocks) - 1}")
        for i, stage in enumerate(net.stages)
    ]


def _mm_vit(net: nn.Module) -> list[Stage]:
    return _split_blocks_into_stages(
        net.layers, "layers", grid=net.patch_resolution, extra_tokens=net.num_extra_tokens
    )


def _mm_mixer(net: nn.Module) -> list[Stage]:
    return _split_blocks_into_stages(net.layers, "layers", grid=net.patch_resolution)


def _mm_resnet(net: nn.Module) -> list[Stage]:
    return [Stage(f"layer{i}", end=f"layer{i}") for i in range(1, 5)]


def _mm_convnext(net: nn.Module) -> list[Stage]:
    # mmpretrain keeps the downsampling outside of the stages.
    begins = ["stages.0", *(f"downsample_layers.{i}" for i in range(1, 4))]
    return [Stage(begin, end=f"stages.{i}") for i, begin in enumerate(begins)]


def _mm_mobilenet_v2(net: nn.Module) -> list[Stage]:
    begins, ends = ("layer1", "layer3", "layer4", "layer6"), ("layer2", "layer3", "layer5", "conv2")
    return [Stage(begin, end=end) for begin, end in zip(begins, ends)]


def _timm_swin(net: nn.Module) -> list[Stage]:
    # The downsampling opens a layer, and the prompt enters after it.
    return [Stage(f"layers.{i}.blocks.0", "NHWC", f"layers.{i}") for i in range(len(net.layers))]


def _timm_vit(net: nn.Module) -> list[Stage]:
    return _split_blocks_into_stages(
        net.blocks, "blocks", grid=net.patch_embed.grid_size, extra_tokens=net.num_prefix_tokens
    )


def _timm_mixer(net: nn.Module) -> list[Stage]:
    return _split_blocks_into_stages(net.blocks, "blocks", grid=net.stem.grid_size)


def _timm_convnext(net: nn.Module) -> list[Stage]:
    return [Stage(f"stages.{i}", end=f"stages.{i}") for i in range(len(net.stages))]


def _timm_resnet(net: nn.Module) -> list[Stage]:
    return [
        Stage(f"layer{i}.0", end=f"layer{i}.{len(getattr(net, f'layer{i}')) - 1}")
        for i in range(1, 5)
    ]


def _timm_mobilenet_v2(net: nn.Module) -> list[Stage]:
    # The output of bn2 is that after the activation of the head convolution.
    begins, ends = (0, 2, 3, 5), ("blocks.1", "blocks.2", "blocks.4", "bn2")
    return [Stage(f"blocks.{begin}", end=end) for begin, end in zip(begins, ends)]


# By library and class name; classes derived from these are found too.
_STAGES: dict[str, dict[str, Callable[[nn.Module], list[Stage]]]] = {
    "OpenMMLab": {
        "SwinTransformer": _mm_swin,
        "VisionTransformer": _mm_vit,
        "MlpMixer": _mm_mixer,
        "ResNet": _mm_resnet,
        "ConvNeXt": _mm_convnext,
        "MobileNetV2": _mm_mobilenet_v2,
    },
    "timm": {
        "SwinTransformer": _timm_swin,
        "VisionTransformer": _timm_vit,
        "MlpMixer": _timm_mixer,
        "ResNet": _timm_resnet,
        "ConvNeXt": _timm_convnext,
        "TinyVit": _timm_convnext,
        "EfficientNet": _timm_mobilenet_v2,
    },
}
