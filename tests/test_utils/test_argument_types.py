"""Types and ranges of arguments."""

from typing import Annotated, Any, Literal, Optional, Union

import pytest
from torch import nn

from pat_mmdet.registry import build_method
from pat_mmdet.utils.argument_types import (
    Fraction,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Range,
    describe,
    matches,
    resembles,
)

PAIR = tuple[PositiveInt, PositiveInt]


@pytest.mark.parametrize(
    ("hint", "legal", "wrong"),
    [
        (bool, [True], ["False", 1, None]),
        (int, [3, 1e5], [True, "3", 2.5, None]),
        (float, [3, 0.5], [True, "0.5", float("nan"), float("inf")]),
        (str, ["a"], [3, None, ["a"]]),
        (PositiveFloat, [1e-9], [0, -1, "1"]),
        (NonNegativeInt, [0, 7], [-1, 0.5]),
        (Fraction, [0, 1], [-0.1, 2]),
        (Annotated[float, Range(min=0, below=1)], [0, 0.99], [1]),
        (Optional[int], [None, 3], ["None"]),
        (Literal["a", "b"], ["a"], ["c", None]),
        (list[int], [[], [1], (1, 2)], [1, ["a"]]),
        (tuple[int, ...], [(1, 2, 3)], [("a",)]),
        (PAIR, [(2, 3), [2, 3]], [(2,), (0, 3), 2, "ab"]),
        (dict, [{}], [[], None, "x"]),
        (nn.Module, [dict(type="ReLU"), None], [3, True]),
        (Any, [None, 3, "x"], []),
    ],
)
def test_exact_types(hint, legal, wrong):
    assert all(matches(value, hint) for value in legal)
    assert not any(matches(value, hint) for value in wrong)


@pytest.mark.parametrize(
    ("hint", "legal", "wrong"),
    [
        (bool, [True, [True, False]], ["False", 1]),
        (int, [2.5, [1, 2], [[1], [2]]], ["a", ["a"], None]),
        (Union[dict, list[dict]], [{}, [{}], None], [3, "x"]),
        (list[int], [[1.5], (1,), [[1], [2]]], [8, "a"]),
    ],
)
def test_types_that_are_not_exact(hint, legal, wrong):
    assert all(resembles(value, hint) for value in legal)
    assert not any(resembles(value, hint) for value in wrong)


@pytest.mark.parametrize(
    ("hint", "text"),
    [
        (PositiveFloat, "a number above 0"),
        (Fraction, "a number of at least 0 and of at most 1"),
        (Optional[PositiveInt], "a whole number of at least 1 or None"),
        (Literal["a", "b"], "one of 'a', 'b'"),
        (PAIR, "a list of 2, each item a whole number of at least 1"),
        (Union[bool, dict], "True or False or a dict"),
    ],
)
def test_description(hint, text):
    assert describe(hint) == text


@pytest.mark.parametrize(
    ("method", "key", "value", "allowed"),
    [
        ("PAT", "feedback", "next", "one of 'previous', 'current', 'none'"),
        ("PAT", "prompt", "pixel", "one of 'channel', 'spatial'"),
        ("PAT", "prompted_share", 0, "a number of at most 1 and above 0"),
        ("PAT", "raa_grid", 0, "a whole number of at least 1"),
        ("PAT", "fd_weight", -1.0, "a number of at least 0"),
        ("OFA", "branch", "stage", "one of 'embedding', 'stages'"),
        ("MGD", "mask_ratio", 1.0, "a number of at least 0 and below 1"),
        ("RKD", "max_rows", 2, "a whole number of at least 3 or None"),
        ("CRD", "momentum", 2, "a number of at least 0 and of at most 1"),
        ("KD", "temperature", "hot", "a number above 0"),
    ],
)
def test_method_refuses_a_value(method, key, value, allowed):
    with pytest.raises(ValueError) as error:
        build_method({"type": method, key: value})
    assert str(error.value) == f"model.method.{key}={value!r}: {method} takes {allowed}"
