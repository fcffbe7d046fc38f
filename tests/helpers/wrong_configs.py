"""Wrong configs: shipped ones with one fault each."""

import random
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, NamedTuple

from helpers.tools import ROOT

from pat_mmdet.utils import load_config
from pat_mmdet.utils.config_tables import TOP_KEYS

DETECTION = "configs/pat/swin_p-res18_digits.py"
CLASSIFICATION = "configs/pat/tinyvit_mini-res18_mini_cifar10.py"
REMOVED = "removed"
NAN, INF = float("nan"), float("inf")
# What is free to the user, or read by other programs.
_FREE = ("custom_keys", "custom_imports", "metainfo", "init_cfg", "meta_keys")


class Fault(NamedTuple):
    """A change that makes a config wrong.

    Attributes:
        kind (str): ``'typo'``, ``'type'``, ``'number'``, or the name of a table.
        key (str): Dotted key of the place.
        value (Any): Its new value; for a typo, the new name of the last part of the key.
    """

    kind: str
    key: str
    value: Any

    def apply(self, cfg):
        """A copy of a config with the fault."""
        cfg = deepcopy(cfg)
        *path, last = self.key.split(".")
        node = cfg
        for part in path:
            node = node[int(part)] if isinstance(node, (list, tuple)) else node[part]
        if self.kind == "typo":
            node[self.value] = node.pop(last)
        elif isinstance(node, (list, tuple)):
            node[int(last)] = self.value
        elif self.value == REMOVED:
            del node[last]
        else:
            node[last] = self.value
        return cfg


def load(path):
    return load_config(str(ROOT / path))


def misspell(name: str, rng: random.Random) -> str:
    """A name with two letters swapped, one left out, or one doubled."""
    place = rng.randrange(1, len(name) - 1)
    while True:
        changed = rng.choice(
            (
                name[:place] + name[place + 1] + name[place] + name[place + 2 :],
                name[:place] + name[place + 1 :],
                name[:place] + name[place] + name[place:],
            )
        )
        if changed != name:
            return changed


def _places(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Key and value of every place of a config."""
    items = enumerate(node) if isinstance(node, (list, tuple)) else node.items()
    for key, value in items:
        yield f"{path}{key}", value
        if isinstance(value, (dict, list)) and key not in _FREE:
            yield from _places(value, f"{path}{key}.")


def random_faults(cfg, seed: int) -> list[Fault]:
    """A misspelt name, a wrong type and a number that is none, at every place of a config."""
    rng = random.Random(seed)
    found = []
    for key, value in _places(cfg):
        if key.partition(".")[0] not in TOP_KEYS:
            continue  # a variable
        name = key.rpartition(".")[2]
        if not name.isdigit() and len(name) > 4:
            found.append(Fault("typo", key, misspell(name, rng)))
        if isinstance(value, bool):
            found.append(Fault("type", key, str(value)))
        elif isinstance(value, (int, float)):
            found += [Fault("type", key, "many"), Fault("number", key, rng.choice((NAN, INF)))]
        elif isinstance(value, (str, dict)):
            found.append(Fault("type", key, rng.choice((7, True))))
    return found
