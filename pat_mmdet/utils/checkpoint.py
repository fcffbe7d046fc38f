"""Reading checkpoints safely, and errors that say what is wrong with one."""

from __future__ import annotations

import os
import pickle
import re
import sys
from collections import OrderedDict
from collections.abc import Sequence
from urllib.parse import urlparse

import torch
from mmengine.dist import barrier, get_local_rank
from mmengine.runner.checkpoint import load_state_dict
from torch import nn

# Weights whose shape depends on the size of the images or windows.
_RESIZED = ("pos_embed", "relative_position_bias_table", "patch_embed.proj.weight")


def read_checkpoint(source: str) -> dict:
    """Reads a checkpoint on the CPU, with tensors and plain Python data only.

    Args:
        source (str): Path or URL of a file written by ``torch.save``, or of safetensors.

    Returns:
        dict: What the file holds.

    Raises:
        FileNotFoundError: If there is no such file, or it cannot be downloaded.
        ValueError: If the file is truncated, no checkpoint, or holds pickled objects.
    """
    path = _download(source) if source.startswith(("http://", "https://")) else source
    if not os.path.isfile(path):
        raise FileNotFoundError(f"checkpoint {source!r} does not exist; check the path")
    if path.endswith(".safetensors"):
        # A package of timm's, which detection does without.
        from safetensors.torch import load_file
    try:
        if path.endswith(".safetensors"):
            return load_file(path)
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Torch's own message may recommend to switch the safety off; only its reason is useful.
        forbidden = [line for line in str(error).splitlines() if "GLOBAL " in line]
        if isinstance(error, pickle.UnpicklingError) and forbidden:
            reason = forbidden[0].split("WeightsUnpickler error:")[-1].strip()
            raise ValueError(
                f"checkpoint {source!r} is refused: it holds pickled Python objects, which could "
                f"run foreign code ({reason}). Ask for a file with weights alone. If you made the "
                'file yourself, save its weights again: python -c "import torch; '
                f"c = torch.load({path!r}, weights_only=False); "
                "torch.save({'state_dict': c['state_dict']}, 'weights.pth')\""
            ) from None
        raise ValueError(
            f"checkpoint {source!r} ({os.path.getsize(path)} bytes) cannot be read: it is "
            f"truncated or no torch checkpoint ({type(error).__name__}). Remove {path!r} and copy "
            "or download it again, or take an earlier one"
        ) from None
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"checkpoint {source!r} holds a {type(checkpoint).__name__}, not a dict of weights"
        )
    return checkpoint


def _download(url: str) -> str:
    """Downloads a file once a machine, into torch's cache, and gives its path.

    As in torch.hub, a name that ends in ``-<hash>.pth`` is checked against the content.
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
    """Loads every weight of a module from a checkpoint, or fails.

    Args:
        module (nn.Module): Takes the weights in place.
        source (str): Path or URL of the checkpoint; weights lie under ``state_dict``,
            ``model`` or on top. Those of older versions of timm are renamed.
        allow_unused (Sequence[str]): Prefixes of keys that the module need not have; other keys
            it does not have are named in a warning.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If it cannot be read, or keys are missing or of other shapes; the file, the
            number of keys and the first names are given.
    """
    checkpoint = read_checkpoint(source)
    # Under "model" in the files of timm and of many authors.
    state = checkpoint.get("state_dict", checkpoint.get("model", checkpoint))
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
        raise ValueError(
            f"checkpoint {source!r} does not fit {type(module).__name__}: "
            f"{len(missing)} of {len(own)} keys are missing{_first(missing)}, "
            f"{len(reshaped)} have another shape{_first(reshaped)}. "
            "Use the checkpoint of this architecture and number of classes, or change the config"
        )
    used = OrderedDict(
        (key, value) for key, value in state.items() if not key.startswith(tuple(allow_unused))
    )
    # Some layers convert older weights by the versions that are noted here.
    used._metadata = getattr(state, "_metadata", OrderedDict())
    load_state_dict(module, used, strict=False, logger="current")


def _converted_by_timm(module: nn.Module, state: dict) -> dict:
    """Lets timm rename and reshape weights that older versions of it saved in another way."""
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
    """Formats the first few names in brackets, or nothing."""
    if not names:
        return ""
    return f" ({', '.join(names[:count])}{', …' if len(names) > count else ''})"
