"""The arguments that a class takes, through the ``**kwargs`` that it hands on to its parents."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple, Optional, Union

from pat_mmdet.utils.argument_types import describe, matches, resembles

MISSING = inspect.Parameter.empty


class Argument(NamedTuple):
    """An argument of a class.

    Attributes:
        hint (Any): Its type, ``MISSING`` if the signature has none, or none that can be evaluated.
        default (Any): Its default, ``MISSING`` if it has none.
        required (bool): Whether whoever builds the class has to give it.
        exact (bool): Whether the type is one of this project, which mean what they say.
    """

    hint: Any = MISSING
    default: Any = MISSING
    required: bool = False
    exact: bool = False

    def refuses(self, value: Any) -> str | None:
        """Return what the argument takes if a value is not that, None if it may be legal."""
        hint = _type_of(self.default) if self.hint is MISSING else self.hint
        legal = matches(value, hint) if self.exact else resembles(value, hint)
        return None if legal or value == self.default else describe(hint)


def _type_of(default: Any) -> Any:
    """Return the type that a default stands for."""
    if isinstance(default, bool):
        return bool
    if isinstance(default, str):
        return Union[str, dict]  # a preset, or its values
    if isinstance(default, (int, float)):
        return Optional[float]
    if isinstance(default, dict):
        return Optional[dict]
    if isinstance(default, (list, tuple)) and default and _type_of(default[0]) == Optional[float]:
        return Union[float, Sequence[Optional[float]], None]
    return object


class Accepted(NamedTuple):
    """Arguments of a class or function.

    Attributes:
        arguments (Mapping[str, Argument]): They by name.
        others (str): What becomes of keys that are not among them: ``'refused'``, ``'ignored'``, or
            ``'used'``, which is assumed where it cannot be told.
    """

    arguments: Mapping[str, Argument]
    others: str


@cache
def accepted_arguments(target: Callable) -> Accepted:
    """Return the keyword arguments that a class or function takes.

    Args:
        target (Callable): A class, or a function that a registry calls.

    Returns:
        Accepted: Them, and what becomes of others.
    """
    if not inspect.isclass(target):
        return _accepted(target, (), first=0)
    makers = [vars(cls)["__init__"] for cls in target.__mro__ if "__init__" in vars(cls)]
    return _accepted(makers[0], tuple(makers[1:]), first=1)


def _accepted(function: Callable, parents: tuple[Callable, ...], first: int) -> Accepted:
    """Return what a function takes.

    Args:
        function (Callable): The function.
        parents (tuple[Callable, ...]): Those that ``super()`` leads to, in order.
        first (int): Number of the first parameter to look at, 1 for methods.
    """
    try:
        parameters = list(inspect.signature(function).parameters.values())[first:]
    except (TypeError, ValueError):  # written in C
        return Accepted({}, "used")
    exact = str(getattr(function, "__module__", "")).startswith("pat_mmdet.")
    own = {
        item.name: Argument(
            _hint(function, item.name), item.default, item.default is MISSING, exact
        )
        for item in parameters
        if item.kind not in (item.VAR_KEYWORD, item.VAR_POSITIONAL)
    }
    rest = next((item.name for item in parameters if item.kind is item.VAR_KEYWORD), None)
    if rest is None:
        return Accepted(own, "refused")
    read = _kwargs_of(inspect.unwrap(function), rest)
    if read is None or (read.handed_on and (not parents or parents[0] is object.__init__)):
        return Accepted(own, "used")
    own.update((name, Argument()) for name in read.taken if name not in own)
    if not read.handed_on:
        return Accepted(own, "ignored")
    inherited = _accepted(parents[0], parents[1:], first=1)
    arguments = {
        # The function gives its parent some arguments itself.
        name: item._replace(
            required=item.required and name not in read.given and place >= read.by_place
        )
        for place, (name, item) in enumerate(inherited.arguments.items())
    }
    return Accepted({**arguments, **own}, inherited.others)


def _hint(function: Callable, name: str) -> Any:
    """Return the annotation of a parameter, evaluated if it is a string."""
    function = inspect.unwrap(function)
    hint = getattr(function, "__annotations__", {}).get(name, MISSING)
    if not isinstance(hint, str):
        return hint
    try:
        return eval(hint, function.__globals__)
    except Exception:  # a name for type checkers only, or `int | None` before Python 3.10
        return MISSING


class _Kwargs(NamedTuple):
    """Use that a function makes of its ``**kwargs``.

    Attributes:
        taken (set[str]): Keys that it reads.
        handed_on (bool): Whether its parent gets the rest.
        given (set[str]): Arguments of the parent that it gives by name.
        by_place (int): Number of those that it gives by their places.
    """

    taken: set[str]
    handed_on: bool
    given: set[str]
    by_place: int


def _is_next(node: ast.expr, function: Callable) -> bool:
    """Return True for ``super()`` of the class that a function belongs to."""
    if not isinstance(node, ast.Call) or getattr(node.func, "id", None) != "super":
        return False
    return (
        not node.args or getattr(node.args[0], "id", None) == function.__qualname__.split(".")[-2]
    )


def _kwargs_of(function: Callable, kwargs: str) -> _Kwargs | None:
    """Return what a function does with its ``**kwargs``.

    None if that is not only reading some and handing on the rest, or if its source is not there.
    """
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError):
        return None
    taken: set[str] = set()
    given: set[str] = set()
    handed_on = understood = by_place = 0
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = node.func.value, node.func.attr
        if getattr(owner, "id", None) == kwargs and name in ("get", "pop", "setdefault"):
            if not node.args or not isinstance(node.args[0], ast.Constant):
                return None
            taken.add(str(node.args[0].value))
            understood += 1
        elif name == "__init__" and _is_next(owner, function):
            rest = [item.value for item in node.keywords if item.arg is None]
            handed_on += sum(getattr(value, "id", None) == kwargs for value in rest)
            given.update(item.arg for item in node.keywords if item.arg is not None)
            by_place += sum(not isinstance(item, ast.Starred) for item in node.args)
    uses = sum(isinstance(node, ast.Name) and node.id == kwargs for node in ast.walk(tree))
    if uses != understood + handed_on:
        return None
    return _Kwargs(taken, handed_on > 0, given, by_place)
