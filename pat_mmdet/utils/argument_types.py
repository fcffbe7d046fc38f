"""Types and ranges of arguments, declared in the signatures of classes and checked in configs.

A signature says what a config may give: ``temperature: PositiveFloat = 1.0``. For type checkers
these are plain ``float`` and ``int``. :mod:`pat_mmdet.utils.config_check` reads them.
"""

from __future__ import annotations

import math
import numbers
import types
from collections.abc import Collection, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

_UNIONS = (Union, getattr(types, "UnionType", Union))
_SEQUENCES = (Sequence, AbstractSet)
_WORDS = {
    bool: "True or False",
    int: "a whole number",
    float: "a number",
    numbers.Number: "a number",
    str: "a string",
    type(None): "None",
}


@dataclass(frozen=True)
class Range:
    """Bounds of a number; all included unless they are said to be open.

    Args:
        min (float): Least value.
        max (float): Greatest value.
        above (float): A bound that the value lies above.
        below (float): A bound that the value lies below.
    """

    min: float = -math.inf
    max: float = math.inf
    above: float = -math.inf
    below: float = math.inf

    def __contains__(self, value: float) -> bool:
        return self.min <= value <= self.max and self.above < value < self.below

    def __str__(self) -> str:
        bounds = {
            "of at least": self.min,
            "of at most": self.max,
            "above": self.above,
            "below": self.below,
        }
        return " and ".join(f"{word} {x:g}" for word, x in bounds.items() if math.isfinite(x))


PositiveInt = Annotated[int, Range(min=1)]
NonNegativeInt = Annotated[int, Range(min=0)]
PositiveFloat = Annotated[float, Range(above=0)]
NonNegativeFloat = Annotated[float, Range(min=0)]
Fraction = Annotated[float, Range(min=0, max=1)]
PositiveFraction = Annotated[float, Range(above=0, max=1)]


def matches(value: Any, hint: Any) -> bool:
    """Return True if a value of a config is legal for a type.

    Configs are looser than Python: lists and tuples stand for each other, whole numbers for
    fractions, and a dict for an object that is built from it. Types that cannot be told from a
    config match everything.

    Args:
        value (Any): The value.
        hint (Any): A type, or what stands for types in annotations.
    """
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        ranges = [item for item in args[1:] if isinstance(item, Range)]
        return matches(value, args[0]) and all(value in item for item in ranges)
    if origin in _UNIONS:
        return any(matches(value, item) for item in args)
    if origin is Literal:
        return value in args
    if hint in (None, type(None)):
        return value is None
    if hint is bool or hint is str:
        return isinstance(value, hint)
    if hint in (int, float, numbers.Number):
        return _is_number(value, whole=hint is int)
    kind = origin or hint
    if not isinstance(kind, type) or kind in (Any, object):
        return True
    if _is_a(kind, *_SEQUENCES):
        return isinstance(value, (list, tuple, set, range)) and _items_match(value, kind, args)
    if _is_a(kind, Mapping):
        return isinstance(value, Mapping)
    # An object: it is built from a dict, or named by a string.
    return not isinstance(value, (bool, numbers.Number))


def _is_number(value: Any, whole: bool) -> bool:
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    # Written as 1e5.
    return math.isfinite(value) and (not whole or float(value).is_integer())


def _items_match(value: Collection, kind: type, args: tuple) -> bool:
    """Return True if the items of a list match the arguments of its type."""
    if kind is tuple and args and args[-1] is not Ellipsis:
        return len(value) == len(args) and all(map(matches, value, args))
    return all(matches(item, arg) for item in value for arg in args if arg is not Ellipsis)


def resembles(value: Any, hint: Any) -> bool:
    """Return True if a value may be legal for an annotation that is not exact.

    Those of OpenMMLab are not: ``int`` stands for fractions, a single value for a list with one for
    each stage, a dict for a list of dicts or for None. It is compared what values are, in lists of
    any depth; a single one in place of a list does not do.

    Args:
        value (Any): The value.
        hint (Any): The annotation.
    """
    listed = isinstance(value, (list, tuple))
    kinds = [float if kind is int else kind for kind in _leaves(hint, inside=listed)]
    return all(
        any(matches(item, kind) or (item is None and _is_a(kind, Mapping)) for kind in kinds)
        for item in (_flatten(value) if listed else [value])
    )


def _leaves(hint: Any, inside: bool) -> Iterator[Any]:
    """Yield the types that make up a type: those of a union, and of items if ``inside``."""
    origin, args = get_origin(hint), get_args(hint)
    if origin in _UNIONS:
        for item in args:
            yield from _leaves(item, inside)
    elif not _is_a(origin or hint, *_SEQUENCES):
        yield hint
    elif inside:
        for item in args or (object,):
            if item is not Ellipsis:
                yield from _leaves(item, inside)


def _flatten(value: Any) -> Iterator[Any]:
    """Yield the items of nested lists."""
    if isinstance(value, (list, tuple)):
        for item in value:
            yield from _flatten(item)
    else:
        yield value


def _is_a(kind: Any, *classes: type) -> bool:
    """Return True if a type is a class that extends one of some."""
    return isinstance(kind, type) and kind is not str and issubclass(kind, classes)


def describe(hint: Any) -> str:
    """Describe what a type allows, for a message: "a number above 0"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return f"{describe(args[0])} {' and '.join(map(str, args[1:]))}"
    if origin in _UNIONS:
        return " or ".join(dict.fromkeys(map(describe, args)))
    if origin is Literal:
        return "one of " + ", ".join(map(repr, args))
    if hint in _WORDS:
        return _WORDS[hint]
    kind = origin or hint
    if _is_a(kind, Mapping):
        return "a dict"
    if _is_a(kind, *_SEQUENCES):
        inner = " or ".join(dict.fromkeys(describe(arg) for arg in args if arg is not Ellipsis))
        number = f" of {len(args)}" if kind is tuple and Ellipsis not in args else ""
        return f"a list{number}, each item {inner}" if inner else "a list"
    return "a dict with a type"
