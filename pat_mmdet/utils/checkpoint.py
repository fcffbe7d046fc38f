"""Reading checkpoints safely, and errors that say what is wrong with one."""

from __future__ import annotations

import os
import pickle
from collections.abc import Sequence
from urllib.error import URLError

import torch
from mmengine.dist import barrier, is_main_process
from mmengine.runner.checkpoint import load_state_dict
from torch import nn


def read_checkpoint(source: str) -> dict:
    """Reads a checkpoint on the CPU, with tensors and plain Python data only.

    Args:
        source (str): Path or URL of a file written by ``torch.save``.

    Returns:
        dict: What the file holds.

    Raises:
        FileNotFoundError: If there is no such file, or it cannot be downloaded.
        ValueError: If the file is truncated, no checkpoint, or holds pickled objects.
    """
    if source.startswith(("http://", "https://")):
        return _download_checkpoint(source)
    if not os.path.isfile(source):
        raise FileNotFoundError(f"checkpoint {source!r} does not exist; check the path")
    try:
        checkpoint = torch.load(source, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        # Torch's own message recommends to switch the safety off; only its reason is useful.
        reason = str(error).split("WeightsUnpickler error:")[-1].strip().split("\n")[0]
        raise ValueError(
            f"checkpoint {source!r} is refused: it holds pickled Python objects, which could run "
            f"foreign code ({reason or type(error).__name__}). Ask for a file with weights alone. "
            'If you made the file yourself, save its weights again: python -c "import torch; '
            f"c = torch.load({source!r}, weights_only=False); "
            "torch.save({'state_dict': c['state_dict']}, 'weights.pth')\""
        ) from None
    except (RuntimeError, EOFError, OSError) as error:
        size = os.path.getsize(source)
        raise ValueError(
            f"checkpoint {source!r} ({size} bytes) cannot be read: it is truncated or no torch "
            f"checkpoint ({str(error).splitlines()[0] if str(error) else type(error).__name__}). "
            "Copy or download it again, or take an earlier one"
        ) from None
    if not isinstance(checkpoint, dict):
        raise ValueError(
            f"checkpoint {source!r} holds a {type(checkpoint).__name__}, not a dict of weights"
        )
    return checkpoint


def _download_checkpoint(url: str) -> dict:
    """Downloads once a machine: the other processes wait and read the cached file."""
    try:
        if is_main_process():
            torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
        barrier()
        return torch.hub.load_state_dict_from_url(url, map_location="cpu", weights_only=True)
    except (URLError, OSError) as error:
        raise FileNotFoundError(
            f"checkpoint {url!r} cannot be downloaded ({error}). Download it by hand and give "
            "the path of the file"
        ) from None


def load_weights(module: nn.Module, source: str, allow_unused: Sequence[str] = ()) -> None:
    """Loads every weight of a module from a checkpoint, or fails.

    Args:
        module (nn.Module): Takes the weights in place.
        source (str): Path or URL of the checkpoint; weights lie under ``state_dict`` or on top.
        allow_unused (Sequence[str]): Prefixes of keys that the module need not have; other keys
            it does not have are named in a warning.

    Raises:
        FileNotFoundError: If the checkpoint does not exist.
        ValueError: If it cannot be read, or keys are missing or of other shapes; the file, the
            number of keys and the first names are given.
    """
    checkpoint = read_checkpoint(source)
    state = checkpoint.get("state_dict", checkpoint)
    own = module.state_dict()
    missing = [key for key in own if key not in state]
    reshaped = [
        f"{key} {tuple(state[key].shape)} instead of {tuple(own[key].shape)}"
        for key in own
        if key in state and state[key].shape != own[key].shape
    ]
    if missing or reshaped:
        raise ValueError(
            f"checkpoint {source!r} does not fit {type(module).__name__}: "
            f"{len(missing)} of {len(own)} keys are missing{_first(missing)}, "
            f"{len(reshaped)} have another shape{_first(reshaped)}. "
            "Use the checkpoint of this architecture and number of classes, or change the config"
        )
    used = {key: value for key, value in state.items() if not key.startswith(tuple(allow_unused))}
    load_state_dict(module, used, strict=False)


def _first(names: Sequence[str], count: int = 5) -> str:
    """Formats the first few names in brackets, or nothing."""
    if not names:
        return ""
    return f" ({', '.join(names[:count])}{', …' if len(names) > count else ''})"
