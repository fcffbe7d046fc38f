"""Features, logits and embedding of a classifier, read by hooks."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from torch import nn

from pat_mmdet.structures import FeatureSpec, NetworkOutputs

from .recorder import Activations, Recorder
from .stages import Stage


class ClassifierReader:
    """Read the outputs of a classifier's stages, and the inputs of its last layers.

    Args:
        network (nn.Module): A classifier of mmpretrain.
        stages (Sequence[Stage]): Stages whose outputs are the features.
        embedding (bool): Whether to read the input of the last linear layer.
        logits (bool): Whether to read the input of the loss, which is called in training alone.

    Raises:
        ValueError: If a path does not exist, a stage has no output module, or hooks would fire
            twice.
    """

    def __init__(
        self, network: nn.Module, stages: Sequence[Stage], embedding: bool, logits: bool = False
    ) -> None:
        for stage in stages:
            if stage.output_module is None:
                raise ValueError(
                    f"the stage with input_module={stage.input_module!r} has no output_module; "
                    "name the module whose output is its feature"
                )
        _refuse_recomputation(network, stages)
        self.stages = tuple(stages)
        inputs = {
            f"size{i}": (stage.output_module, 1)
            for i, stage in enumerate(stages)
            if stage.layout == "NLC" and stage.grid is None
        }
        if logits:
            inputs["logits"] = (_loss_module(network), 0)
        if embedding:
            inputs["embedding"] = (_classifier(network), 0)
        outputs = {f"stage{i}": stage.output_module for i, stage in enumerate(stages)}
        self._recorder = Recorder(network, inputs, outputs)

    def recording(self) -> AbstractContextManager[Activations]:
        """Yield the activations of the pass inside the context, for :meth:`read`."""
        return self._recorder.recording()

    def read(self, activations: Activations) -> NetworkOutputs:
        """Return the features, and the logits and embedding that were recorded.

        Raises:
            ValueError: If a stage was not run, or its output is not of its layout.
        """
        features = []
        for i, stage in enumerate(self.stages):
            if f"stage{i}" not in activations:
                raise ValueError(f"the module {stage.output_module!r} of a stage is not run")
            size = activations.get(f"size{i}", [None])[0]
            features.append(stage.to_map(activations[f"stage{i}"][0], (None, size))[0])
        scores = {
            name: activations[name][0] for name in ("logits", "embedding") if name in activations
        }
        return NetworkOutputs(features, **scores)

    def describe(
        self, outputs: NetworkOutputs, stage_inputs: tuple[tuple[int, int, int], ...] = ()
    ) -> FeatureSpec:
        """Return the shapes of outputs for one image.

        Args:
            outputs (NetworkOutputs): What :meth:`read` returned.
            stage_inputs (tuple): (C, H, W) of the input of each stage with a prompt.
        """
        return FeatureSpec(
            features=tuple(tuple(x.shape[1:]) for x in outputs.features),
            num_classes=None if outputs.logits is None else outputs.logits.shape[1],
            embedding=None if outputs.embedding is None else outputs.embedding.shape[1],
            tokens=any(stage.layout != "NCHW" for stage in self.stages),
            stage_inputs=stage_inputs,
            stage_features=tuple(range(len(stage_inputs))),
        )


def _classifier(network: nn.Module) -> str:
    """Return the path of the last linear layer, which gives the logits.

    Distilled DeiT has two: that of the class token is taken.

    Raises:
        ValueError: If there is none.
    """
    modules = dict(network.named_modules())
    linear = [name for name in modules if isinstance(modules[name], nn.Linear)]
    if hasattr(network, "model"):
        found = network.model.get_classifier()
        classifier = found[0] if isinstance(found, tuple) else found
        linear = [name for name in linear if modules[name] is classifier]
    else:
        linear = [name for name in linear if name.startswith("head.") and "dist" not in name]
    if not linear:
        raise ValueError(
            f"{type(network).__name__} has no linear classifier in its head; give num_classes in "
            "its config"
        )
    return linear[-1]


def _loss_module(network: nn.Module) -> str:
    """Return the path of the loss of an mmpretrain classifier."""
    return "loss_module" if hasattr(network, "loss_module") else "head.loss_module"


def _refuse_recomputation(network: nn.Module, stages: Sequence[Stage]) -> None:
    """Refuse activation checkpointing in timm models, under which hooks fire twice or never.

    Raises:
        ValueError: If it is on and stages are read.
    """
    if stages and getattr(network, "with_cp", False) and hasattr(network, "model"):
        raise ValueError(
            "with_cp=True of TimmClassifier runs parts of the network a second time, past the "
            "hooks that read its features; leave it out (for a teacher, "
            "model.recompute_teacher=True does the same), or take a method on logits alone"
        )
