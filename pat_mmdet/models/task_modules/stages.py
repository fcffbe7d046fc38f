"""The modules at the inputs and outputs of the stages of each architecture, and their layouts."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

_LAYOUTS = ("NCHW", "NHWC", "NLC")


# Names of fields in configs of earlier versions.
_OLD_FIELDS = {"begin": "input_module", "end": "output_module"}


@dataclass(frozen=True)
class Stage:
    """One stage of a network.

    Attributes:
        input_module (str): Path of the module whose input is the stage's input.
        layout (str): ``'NCHW'`` or ``'NHWC'`` for maps, ``'NLC'`` for tokens in row order.
        output_module (str, optional): Path of the module whose output is the stage's feature.
        grid (tuple[int, int], optional): (H, W) of tokens; by default the second argument of both
            modules.
        extra_tokens (int): Number of tokens before those of the grid, such as the class token.
            They are not prompted and are no part of a feature.

    Raises:
        ValueError: If the layout is unknown.
    """

    input_module: str
    layout: str = "NCHW"
    output_module: str | None = None
    grid: tuple[int, int] | None = None
    extra_tokens: int = 0

    def __post_init__(self) -> None:
        if self.layout not in _LAYOUTS:
            raise ValueError(
                f"stage {self.input_module!r}: unknown layout {self.layout!r}; known: "
                f"{', '.join(_LAYOUTS)}"
            )

    @classmethod
    def from_config(cls, config: dict) -> Stage:
        """Build a stage from an item of ``student_stages`` or ``teacher_stages``.

        Args:
            config (dict): Fields of :class:`Stage` by name; ``begin`` and ``end`` are earlier
                names of ``input_module`` and ``output_module``.

        Raises:
            ValueError: If a field is unknown, given by two names, or missing.
        """
        settings = {_OLD_FIELDS.get(key, key): value for key, value in config.items()}
        known = [field.name for field in fields(cls)]
        if len(settings) < len(config) or not {"input_module"} <= set(settings) <= set(known):
            raise ValueError(
                f"a stage is described by {dict(config)}; it needs input_module and may have "
                f"{', '.join(known[1:])}, each once"
            )
        return cls(**settings)

    def to_map(self, x: Tensor, args: Sequence) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
        """Convert an input or output of the stage to a map.

        Args:
            x (Tensor): Input or output of the module, in the stage's layout.
            args (Sequence): Positional arguments of the module.

        Returns:
            tuple[Tensor, Callable]: The map (B, C, H, W), and a function that restores the layout
            of such a map.

        Raises:
            ValueError: If the tensor is not of the stage's layout, or the grid is unknown.
        """
        if x.ndim != len(self.layout):
            raise ValueError(
                f"stage {self.input_module!r}: layout {self.layout!r} does not fit a tensor of "
                f"shape {tuple(x.shape)}; known: {', '.join(_LAYOUTS)}"
            )
        if self.layout == "NCHW":
            return x, lambda features: features
        if self.layout == "NHWC":
            return x.permute(0, 3, 1, 2), lambda features: features.permute(0, 2, 3, 1)
        if self.grid is None and len(args) < 2:
            raise ValueError(
                f"stage {self.input_module!r}: its module does not get the (H, W) of its tokens; "
                "give them as grid=(H, W)"
            )
        extra = x[:, : self.extra_tokens]
        features = tokens_to_map(x[:, self.extra_tokens :], self.grid or args[1])

        def restore_layout(features: Tensor) -> Tensor:
            tokens = map_to_tokens(features)
            return torch.cat([extra, tokens], dim=1) if self.extra_tokens else tokens

        return features, restore_layout


def resolve(network: nn.Module, path: str) -> nn.Module:
    """Return a module by its path.

    Args:
        network (nn.Module): The network.
        path (str): Names of the modules on the way, joined by dots.

    Raises:
        ValueError: If there is no such module; close paths are named.
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


def find_stages(network: nn.Module, configs: Sequence[dict] | None, role: str) -> tuple[Stage, ...]:
    """Return the stages of a detector or classifier.

    Args:
        network (nn.Module): The network.
        configs (Sequence[dict], optional): Its stages, as in ``model.teacher_stages``; by default
            those of its backbone's class.
        role (str): ``'student'`` or ``'teacher'``, for the error message.

    Returns:
        tuple[Stage, ...]: Its stages from shallow to deep.

    Raises:
        ValueError: If they are unknown.
    """
    if configs is not None:
        return tuple(Stage.from_config(config) for config in configs)
    name = "model" if hasattr(network, "model") else "backbone"  # of timm's classifiers
    return backbone_stages(getattr(network, name), name, role)


def backbone_stages(
    backbone: nn.Module, prefix: str = "backbone", role: str = "teacher"
) -> tuple[Stage, ...]:
    """Return the stages of a backbone, by its class.

    Args:
        backbone (nn.Module): A backbone of mmdet or mmpretrain, or a timm model.
        prefix (str): Path of the backbone inside its network.
        role (str): ``'student'`` or ``'teacher'``, for the error message.

    Returns:
        tuple[Stage, ...]: Its stages from shallow to deep, as far as it was built.

    Raises:
        ValueError: If the architecture is unknown.
    """
    for cls in type(backbone).__mro__:
        library = "timm" if cls.__module__.startswith("timm.") else "OpenMMLab"
        if cls.__name__ in _STAGES[library]:
            modules = dict(backbone.named_modules())
            return tuple(
                replace(
                    stage,
                    input_module=f"{prefix}.{stage.input_module}",
                    output_module=f"{prefix}.{stage.output_module}"
                    if stage.output_module in modules
                    else None,
                )
                for stage in _STAGES[library][cls.__name__](backbone)
                if stage.input_module in modules
            )
    known = sorted({name for table in _STAGES.values() for name in table})
    raise ValueError(
        f"the stages of {type(backbone).__name__} are not known (known: {', '.join(known)}). "
        f"Name them in the config: model.{role}_stages=[dict(input_module="
        f"'{prefix}.<module>', output_module='{prefix}.<module>', layout='NCHW'), ...]"
    )


def tokens_to_map(tokens: Tensor, size: Sequence[int]) -> Tensor:
    """Convert tokens (B, H·W, C), in row order, to a map (B, C, H, W)."""
    return tokens.transpose(1, 2).unflatten(2, tuple(size))


def map_to_tokens(features: Tensor) -> Tensor:
    """Convert a map (B, C, H, W) to tokens (B, H·W, C), in row order."""
    return features.flatten(2).transpose(1, 2)


def _split_blocks_into_stages(blocks: nn.Sequential, name: str, **settings: Any) -> list[Stage]:
    """Split equal blocks into four stages that end after 2, 4, 10 and 12 of 12 blocks."""
    depth = len(blocks)
    stops = [max(round(depth * share / 12), i + 1) for i, share in enumerate((2, 4, 10, 12))]
    starts = [0, *stops[:-1]]
    return [
        Stage(f"{name}.{start}", "NLC", f"{name}.{stop - 1}", **settings)
        for start, stop in zip(starts, stops)
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
    return [Stage(f"layer{i}", output_module=f"layer{i}") for i in range(1, 5)]


def _mm_convnext(net: nn.Module) -> list[Stage]:
    # mmpretrain keeps the downsampling outside of the stages.
    inputs = ["stages.0", *(f"downsample_layers.{i}" for i in range(1, 4))]
    return [Stage(path, output_module=f"stages.{i}") for i, path in enumerate(inputs)]


def _mm_mobilenet_v2(net: nn.Module) -> list[Stage]:
    inputs = ("layer1", "layer3", "layer4", "layer6")
    outputs = ("layer2", "layer3", "layer5", "conv2")
    return [Stage(first, output_module=last) for first, last in zip(inputs, outputs)]


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
    return [Stage(f"stages.{i}", output_module=f"stages.{i}") for i in range(len(net.stages))]


def _timm_resnet(net: nn.Module) -> list[Stage]:
    return [
        Stage(f"layer{i}.0", output_module=f"layer{i}.{len(getattr(net, f'layer{i}')) - 1}")
        for i in range(1, 5)
    ]


def _timm_mobilenet_v2(net: nn.Module) -> list[Stage]:
    # The output of bn2 is that after the activation of the head convolution.
    inputs, outputs = (0, 2, 3, 5), ("blocks.1", "blocks.2", "blocks.4", "bn2")
    return [Stage(f"blocks.{i}", output_module=last) for i, last in zip(inputs, outputs)]


# By library and class name; subclasses are found too.
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
