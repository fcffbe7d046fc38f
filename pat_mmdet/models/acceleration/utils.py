"""Helpers of fast layers and blocks."""

from __future__ import annotations

from functools import cache

from torch import nn


def mix_in(mixin: type, module: nn.Module, prefix: str) -> None:
    """Change the class of a module to a subclass with the methods of a mixin, in place.

    Unlike a replaced ``forward`` attribute, the class holds for deep copies too, which compute with
    their own weights.

    Args:
        mixin (type): Class with the new methods.
        module (nn.Module): The module, changed in place.
        prefix (str): Prefix of the new class's name.
    """
    module.__class__ = _subclass(mixin, type(module), prefix)


@cache
def _subclass(mixin: type, cls: type, prefix: str) -> type:
    """Return the one subclass of a class with a mixin."""
    return type(f"{prefix}{cls.__name__}", (mixin, cls), {})
