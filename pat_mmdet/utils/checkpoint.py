"""Reading of checkpoints without running code from them, and strict loading of weights."""

from __future__ import annotations

import os
import pickle
import re
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from difflib import get_close_matches
from functools import partial
from typing import Any
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.runner.checkpoint import (
    CheckpointLoader,
    get_external_models,
    get_torchvision_models,
    load_state_dict,
)
from torch import nn

from pat_mmdet.utils.finite import describe_non_finite, find_non_finite
from pat_mmdet.utils.io import is_compressed, is_whole
from pat_mmdet.utils.model_zoo import ZOOS, list_weights

# Weights whose shape depends on the size of the images or windows.
_RESIZED = ("pos_embed", "relative_position_bias_table", "patch_embed.proj.weight")
# Names of MMEngine's model zoos, as its `CheckpointLoader` knows them, and those of metafiles.
_MODEL_ZOOS = {
    "torchvision://": get_torchvision_models,
    "modelzoo://": get_torchvision_models,
    "open-mmlab://": get_external_models,
    "openmmlab://": get_external_models,
    **{f"{package}://": partial(list_weights, package) for package in ZOOS},
}
# What a checkpoint holds besides weights if a training can go on from it.
_OF_TRAINING = ("meta", "message_hub", "optimizer")


def force_safe_loading() -> None:
    """Have torch read every file of this process with ``weights_only=True``.

    That holds for older versions of torch too, and for other libraries.
    """
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"


# Whatever builds a model or a hook of this package imports this module first.
force_safe_loading()


class PickledObject:
    """Placeholder of an object that is neither a tensor nor plain data.

    Whatever a file does with the original (call it, give it a state), the placeholder takes the
    arguments and drops them. It has no attribute or method of the original.
    """

    __slots__ = ()

    def __new__(cls, *args: Any) -> PickledObject:
        """Ignore the arguments of the original."""
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Ignore the state of the original."""


def read_checkpoint(source: str, allow_objects: bool = True) -> dict:
    """Read a checkpoint on the CPU without running anything that the file asks for.

    Tensors and plain Python data are read. Other objects, such as the ``HistoryBuffer`` and NumPy
    scalars in checkpoints of MMEngine, become instances of :class:`PickledObject`.

    Args:
        source (str): Path, URL, ``torchvision://`` or ``open-mmlab://`` name of a file written by
            ``torch.save``, or path or URL of safetensors.
        allow_objects (bool): Whether other objects are replaced; otherwise they are refused, for
            example because a resumed training needs them.

    Returns:
        dict: Content of the file.

    Raises:
        FileNotFoundError: If there is no such file, or it cannot be downloaded.
        ValueError: If the file is truncated, damaged or compressed, is no checkpoint, or holds
            objects that are refused: any if ``allow_objects`` is False, else those of modules that
            torch blocks (``os``, ``sys``) and those in files of torch before 1.6.
    """
    path = _local_path(source)
    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint {source!r} does not exist; check the path")
    if is_compressed(path):
        raise ValueError(
            f"checkpoint {source!r} is refused: its content is compressed, which torch never does, "
            "and may fill the memory. Ask for the file as torch.save wrote it"
        )
    if path.endswith(".safetensors"):
        # A dependency of timm, which detection does not need.
        from safetensors.torch import load_file
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        with _placeholders(path) if allow_objects else nullcontext():
            checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Without the name of a global, a file that is no zip may be any text.
        is_pickle = zipfile.is_zipfile(path) or "GLOBAL " in str(error)
        if isinstance(error, pickle.UnpicklingError) and is_pickle:
            raise ValueError(
                f"checkpoint {source!r} is refused: it holds pickled Python objects, which could "
                f"run foreign code ({_reason(error)}). Ask for a file with weights alone. If you "
                'made the file yourself, save its weights again: python -c "import torch; '
                f"c = torch.load({path!r}, weights_only=False); "
                "torch.save({'state_dict': c['state_dict']}, 'weights.pth')\""
            ) from None
        raise ValueError(
            f"checkpoint {source!r} ({os.path.getsize(path)} bytes) cannot be read: it is "
            f"truncated or no torch checkpoint ({type(error).__name__}). Remove {path!r} and copy "
            "or download it again, or take an earlier one"
        ) from None
    if zipfile.is_zipfile(path) and not is_whole(path):
        raise ValueError(
            f"checkpoint {source!r} is damaged: its content does not fit its checksums. Remove "
            f"{path!r} and copy or download it again, or take an earlier one"
        )
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"checkpoint {source!r} holds a {type(checkpoint).__name__}, not a dict of weights"
        )
    return checkpoint


def read_training(source: str) -> dict:
    """Read a checkpoint from which a training can go on.

    Args:
        source (str): Checkpoint, see :func:`read_checkpoint`.

    Returns:
        dict: Content of the file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, holds pickled objects, or weights alone.
    """
    checkpoint = read_checkpoint(source, allow_objects=False)
    missing = [key for key in _OF_TRAINING if not isinstance(checkpoint.get(key), dict)]
    meta = checkpoint.get("meta")
    if isinstance(meta, dict):
        counts = (meta.get(key) for key in ("epoch", "iter"))
        if not all(isinstance(count, int) and count >= 0 for count in counts):
            missing.append("meta.iter")
    if missing:
        raise ValueError(
            f"checkpoint {source!r} cannot be resumed from: it holds weights alone (no "
            f"{', '.join(missing)}). Resume from a checkpoint that the training wrote at an "
            "interval; to start a training with these weights, leave out --resume and give "
            f"--cfg-options load_from={source}"
        )
    return checkpoint


@CheckpointLoader.register_scheme(prefixes=["", "http://", "https://", *_MODEL_ZOOS], force=True)
def load_from_weights_only(filename: str, map_location: Any = None) -> dict:
    """Read a checkpoint for MMEngine: ``load_from``, ``resume`` and every ``init_cfg``.

    Args:
        filename (str): Checkpoint, see :func:`read_checkpoint`.
        map_location (Any): Ignored, as the weights are copied into a module anyway.

    Returns:
        dict: Content of the file on the CPU, without what MMEngine would run: ``Runner.resume``
        takes ``meta["config"]`` for a config and executes it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, is refused, or has no weights.
    """
    checkpoint = read_checkpoint(os.path.expanduser(filename))
    find_weights(checkpoint, filename)
    meta = checkpoint.get("meta")
    if isinstance(meta, dict):
        # An OrderedDict in a file may bring methods of its own.
        checkpoint["meta"] = {key: meta[key] for key in dict.keys(meta) if key != "config"}
    return checkpoint


def find_weights(checkpoint: dict, source: str) -> dict:
    """Return the weights in the content of a checkpoint.

    Args:
        checkpoint (dict): Content of the file; weights lie under ``state_dict``, ``model`` or at
            the top level.
        source (str): Its name in messages.

    Returns:
        dict: The weights.

    Raises:
        ValueError: If there is something else in their place.
    """
    # Under "model" in the files of timm and of many authors.
    state = checkpoint.get("state_dict", checkpoint.get("model", checkpoint))
    if not isinstance(state, dict):
        kind = "pickled " if isinstance(state, PickledObject) else ""
        raise ValueError(
            f"checkpoint {source!r} holds a {kind}{type(state).__name__} instead of weights; "
            "ask for its state_dict"
        )
    unnamed = next((key for key in state if not isinstance(key, str)), None)
    if unnamed is not None:
        raise ValueError(
            f"checkpoint {source!r} has {unnamed!r} in place of the name of a weight; ask for its "
            "state_dict"
        )
    return state


def trained_classes(checkpoint: dict) -> tuple[str, ...]:
    """Return the classes that a checkpoint was trained on, as MMEngine and MMDetection 2 note them.

    Returns:
        tuple[str, ...]: Empty if they are not known.
    """
    meta = checkpoint.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    dataset_meta = meta.get("dataset_meta")
    noted = dataset_meta.get("classes") if isinstance(dataset_meta, dict) else meta.get("CLASSES")
    is_plain = isinstance(noted, (list, tuple)) and all(isinstance(name, str) for name in noted)
    return tuple(noted) if is_plain else ()


def _reason(error: pickle.UnpicklingError) -> str:
    """Return the line of torch's message that says what was refused.

    The rest recommends to switch the safety off.
    """
    text = str(error).split("WeightsUnpickler error:")[-1].strip()
    lines = text.splitlines()
    return next((line for line in lines if "GLOBAL " in line), lines[0]).split(". Please")[0]


def _placeholders(path: str) -> AbstractContextManager:
    """Return a context in which torch reads a file with placeholders for unknown objects.

    Torch's safe loading looks globals up by module and name, among the classes that it was told.
    For every global that it would refuse it is told a placeholder class of that name, so that the
    original is never imported.
    """
    # Torch lists the globals of its zip files only, and only since version 2.6.
    list_unsafe_globals = getattr(torch.serialization, "get_unsafe_globals_in_checkpoint", None)
    if list_unsafe_globals is None or not zipfile.is_zipfile(path):
        return nullcontext()
    names = (full_name.rpartition(".") for full_name in list_unsafe_globals(path))
    return torch.serialization.safe_globals(
        [
            type(name, (PickledObject,), {"__slots__": (), "__module__": module})
            for module, _, name in names
        ]
    )


def _local_path(source: str) -> str:
    """Return the path of a checkpoint, downloading it if it is a URL or a name of a model zoo.

    Raises:
        FileNotFoundError: If the download fails.
        ValueError: If the model zoo has no such name.
    """
    for prefix, list_models in _MODEL_ZOOS.items():
        if source.startswith(prefix):
            models = list_models()
            name = source[len(prefix) :]
            if name not in models:
                near = ", ".join(get_close_matches(name, models)) or "none"
                raise ValueError(
                    f"checkpoint {source!r}: {prefix} has no model {name!r}; similar names: {near}"
                )
            return _local_path(models[name])
    return _download(source) if source.startswith(("http://", "https://")) else source


def _download(url: str) -> str:
    """Download a file once a machine into torch's cache, and return its path.

    As in torch.hub, a name that ends in ``-<hash>.pth`` is checked against the content.

    Raises:
        FileNotFoundError: If the download fails.
    """
    name = os.path.basename(urlparse(url).path)
    path = os.path.join(torch.hub.get_dir(), "checkpoints", name)
    if get_local_rank() == 0 and not os.path.isfile(path):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        digest = re.search(r"-([0-9a-f]{8,})\.", name)
        try:
            torch.hub.download_url_to_file(url, path, digest.group(1) if digest else None)
        except (OSError, RuntimeError) as error:
            raise FileNotFoundError(
                f"checkpoint {url!r} cannot be downloaded ({error}). Download it by hand and give "
                "the path of the file"
            ) from None
    barrier()
    return path


def load_weights(module: nn.Module, source: str, allow_unused: Sequence[str] = ()) -> None:
    """Load every weight of a module from a checkpoint, or fail.

    Args:
        module (nn.Module): Module whose weights are replaced in place.
        source (str): Checkpoint, see :func:`read_checkpoint`; weights lie under ``state_dict``,
            ``model`` or at the top level. Those of older versions of timm are renamed.
        allow_unused (Sequence[str]): Prefixes of keys that the module need not have; other keys
            it does not have are named in a warning.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If it cannot be read, keys are missing or of other shapes, or weights are NaN or
            infinite; the message gives the file, the number of keys and the first names.
    """
    checkpoint = read_checkpoint(source)
    state = find_weights(checkpoint, source)
    own = module.state_dict()
    if any(getattr(state.get(key), "shape", None) != own[key].shape for key in own):
        state = _converted_by_timm(module, state)
    # Files from before torch counted batches lack the counters, which nothing reads.
    missing = [key for key in own if key not in state and not key.endswith("num_batches_tracked")]
    reshaped = [
        f"{key} {tuple(getattr(state[key], 'shape', ()))} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and getattr(state[key], "shape", None) != own[key].shape
    ]
    if missing or reshaped:
        classes = trained_classes(checkpoint) if reshaped else ()
        trained = f", and it was trained on {len(classes)} classes" if classes else ""
        raise ValueError(
            f"checkpoint {source!r} does not fit {type(module).__name__}: "
            f"{len(missing)} of {len(own)} keys are missing{_first(missing)}, "
            f"{len(reshaped)} have another shape{_first(reshaped)}{trained}. "
            "Use the checkpoint of this architecture and number of classes, or change the config"
        )
    used = OrderedDict(
        (key, value) for key, value in state.items() if not key.startswith(tuple(allow_unused))
    )
    # Some layers convert older weights by the versions that are noted here.
    used._metadata = getattr(state, "_metadata", OrderedDict())  # type: ignore[attr-defined]
    load_state_dict(module, used, strict=False, logger="current")
    names = find_non_finite(module.state_dict())
    if names:
        raise ValueError(
            f"checkpoint {source!r} gives {type(module).__name__} {describe_non_finite(names)}; "
            "use another checkpoint, an earlier one of its training for example"
        )


def _converted_by_timm(module: nn.Module, state: dict) -> dict:
    """Rename and reshape weights of older versions of timm by its own filters."""
    network = getattr(module, "model", None)
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if convert is None or not type(network).__module__.startswith("timm."):
        return state
    try:
        converted = convert(dict(state), network)
    except Exception:
        # Not of this architecture, on which it fails in many ways: the message about the keys
        # says more.
        return state
    # It also resizes tables of another image or window size, which makes another network. As they
    # were, they are refused for their shape.
    resized = {
        key: value
        for key, value in state.items()
        if key.endswith(_RESIZED) and key in converted and converted[key].numel() != value.numel()
    }
    return {**converted, **resized}


def _first(names: Sequence[str], count: int = 5) -> str:
    """Format the first few names in brackets, or return an empty string."""
    if not names:
        return ""
    return f" ({', '.join(names[:count])}{', …' if len(names) > count else ''})"
