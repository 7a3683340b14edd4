import inspect
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
import pytest
import torch

from fmkit.arguments import (
    check_arguments,
    check_count,
    check_device,
    check_dtype,
    check_generator,
    check_instance,
    check_number,
    checked,
    is_number,
    shown,
)
from fmkit.errors import ArgumentError
from fmkit.fields import MLP, VectorField
from fmkit.parts import Part
from fmkit.paths import AffinePath, CondOT, ProbabilityPath
from fmkit.solvers import Solver


def fits(annotation, value):
    def function(value):
        """Of one argument."""

    function.__annotations__["value"] = annotation
    try:
        check_arguments(function, {"value": value})
    except ArgumentError:
        return False
    return True


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (float, [1.0, 1, np.float32(1), np.int64(1), float("inf")], ["1", True, np.True_, float("nan"), None, 1j]),
        (int, [1, np.int64(1), -1], [1.0, "1", True, np.float32(1), None]),
        (bool, [True, np.False_], [1, "True", None]),
        (str, ["a"], [1, None, b"a"]),
        (float | None, [None, 1.0], ["a"]),
        (Literal["a", "b"], ["a", "another"], [1, None]),
        (Sequence[int], [[1, 2], (1,), np.array([1, 2]), torch.Size([1]), []], ["12", [1.5], 1, torch.ones(2), None]),
        (Sequence[Sequence[float]], [[[1.0], (2,)], np.ones((2, 2))], [[1.0], ["ab"], np.ones(2)]),
        (tuple[float, float], [(0, 1), [0.0, 1.0]], [(0.0,), (0, 1, 2), ("a", "b")]),
        (tuple[int, ...], [(), (1, 2, 3)], [(1.5,), 1]),
        (dict[str, int], [{}], [[], 1]),
        (Callable[[float], float], [abs], [1.0]),
        (torch.Tensor, [torch.ones(1)], [[1.0], np.ones(1)]),
        (Solver | None, [None], [CondOT(), "euler"]),
        (ProbabilityPath, [CondOT()], [CondOT, MLP(2)]),
        (Any, [object()], []),
        ("NotKnown", [object()], []),
    ],
)
def test_what_fits_an_annotation(annotation, right, wrong):
    assert [value for value in right if not fits(annotation, value)] == []
    assert [value for value in wrong if fits(annotation, value)] == []


def test_which_part_of_its_kind_it_must_be_is_for_its_user_to_say():
    class Other(ProbabilityPath):
        def sample(self, t, x0, x1, *, generator=None):
            raise NotImplementedError

    assert fits(AffinePath, Other())
    assert fits(VectorField, torch.nn.Linear(2, 2))  # of which a field is made
    assert not fits(VectorField, 3)


class Doubled(Part):
    def __init__(self, n: int = 1, name: str = "a") -> None:
        super().__init__()
        if n == 0:
            raise ArgumentError("n is 0, in the constructor's own words")
        self.twice = n * 2
        self.half = n / 2


def test_a_part_speaks_first_and_its_annotations_after_it():
    assert Doubled(3).twice == 6
    with pytest.raises(ArgumentError, match="own words"):
        Doubled(0)
    with pytest.raises(ArgumentError, match="^Doubled: name is 3, expected text$"):
        Doubled(name=3)
    with pytest.raises(ArgumentError, match="^Doubled: n is 'ab', expected a whole number$") as caught:
        Doubled("ab")
    assert isinstance(caught.value.__cause__, TypeError)  # what the constructor tripped over
    with pytest.raises(TypeError, match="unexpected keyword"):
        Doubled(m=1)


def test_a_checked_function_is_the_function():
    @checked
    def f(n: int, *, scale: float = 1.0) -> float:
        """Scaled."""
        return n * scale

    assert f(2, scale=0.5) == 1.0
    assert (f.__name__, f.__doc__) == ("f", "Scaled.")
    with pytest.raises(ArgumentError, match="scale is 'a', expected a number"):
        f(2, scale="a")
    with pytest.raises(TypeError, match="missing 1 required"):
        f()


def test_numbers_and_counts():
    assert check_number("x", np.float64(2.0)) == 2.0
    assert check_count("n", np.int64(3)) == 3
    assert check_count("n", 0, least=0) == 0
    assert not any(is_number(v) for v in (True, "1", None, float("nan"), 1j))
    for wrong in (float("inf"), float("nan"), True, "1", None, torch.ones(2)):
        with pytest.raises(ArgumentError, match="x is .*, expected a finite number"):
            check_number("x", wrong)
    for wrong in (0, 1.0, True, "1", None):
        with pytest.raises(ArgumentError, match="n is .*, expected a whole number of at least 1"):
            check_count("n", wrong)


def test_values_are_shown_in_few_words():
    assert shown("a") == "'a'"
    assert shown(torch.ones(2, 3)) == "a tensor of shape (2, 3)"
    assert shown(CondOT()) == "a CondOT"
    assert shown(CondOT) == "the class CondOT"
    assert shown(list(range(1000))) == "a list"


@pytest.mark.parametrize(
    ("annotation", "right", "wrong"),
    [
        (Iterable[int], [[1], (1,), {1}, iter([1]), (n for n in [1]), np.array([1, 2])], ["1", b"1", {1: 2}, 1]),
        (Iterable[int], [{"a"}, iter("ab")], [["a"], np.array(["a"])]),  # what can be read but once is not
        (Sequence[int], [range(3)], [{1}, iter([1]), np.array(1), {1: 2}, b"12"]),
        (Sequence[Any], [["a", 1]], ["a"]),
        (typing.Sequence, [["a", 1], ()], ["a", 1]),
        (tuple[int, str], [(1, "a")], [("a", 1), (1, 2), (1,), (1, "a", "b")]),
        (tuple[int, ...], [(1, 2)], [(1, "a"), ("a", 1)]),
        (Mapping[str, int], [{"a": 1}], [[("a", 1)], "a"]),
        (None, [None], [0, False, "None"]),
        (Callable, [abs, Part], [3, "abs"]),
        (Literal[1, "a"], [1, 2, "b"], [None, 1.5]),
        (int | str, [1, "a"], [1.5, None, True]),
        (type, [Part], [3]),
        (inspect.Parameter.empty, [object()], []),
        (TypeVar("T"), [object()], []),
        ("int", [1], ["a"]),
        ("Unknown[int]", [object()], []),
        ("not python", [object()], []),
        ("int.nothing", [object()], []),
        ("3 | 'a'", [object()], []),
    ],
)
def test_what_fits_the_rarer_annotations(annotation, right, wrong):
    assert [value for value in right if not fits(annotation, value)] == []
    assert [value for value in wrong if fits(annotation, value)] == []


@pytest.mark.parametrize(
    ("annotation", "said"),
    [
        (float, "a number"),
        (int, "a whole number"),
        (bool, "True or False"),
        (str, "text"),
        (torch.Tensor, "a tensor"),
        (Solver, "a Solver"),
        (AffinePath, "an AffinePath"),
        (float | None, "a number or None"),
        (int | Sequence[int], "a whole number or a sequence, each a whole number"),
        (Sequence[int] | Sequence[int] | None, "a sequence, each a whole number or None"),
        (Sequence[Any] | None, "a sequence or None"),
        (Sequence[float | str], "a sequence, each a number or text"),
        (Literal["a", 2], "'a' or 2"),
        (Callable[[float], float], "a function"),
        (Mapping[str, int], "a Mapping"),
        (tuple[int, ...], "a sequence, each a whole number"),
        (type("Xylem", (), {}), "a Xylem"),
        (type("umbrella", (), {}), "an umbrella"),
        (bool | Literal["adjoint"], "True or False or 'adjoint'"),
    ],
)
def test_what_is_expected_is_said_in_words(annotation, said):
    def function(value):
        """Of one argument."""

    function.__annotations__["value"] = annotation
    with pytest.raises(ArgumentError, match=rf"^value is 1j, expected {re.escape(said)}$"):
        check_arguments(function, {"value": 1j})


def test_every_argument_is_looked_at_and_none_that_is_not_annotated():
    def function(a: int, b, c: int = 0):
        """Of three arguments."""

    check_arguments(function, {"a": 1, "b": object(), "c": 2})
    with pytest.raises(ArgumentError, match="c is 'x'"):
        check_arguments(function, {"a": 1, "b": object(), "c": "x"})


def test_objects_of_torchs_own_kinds():
    """Each check gives back what it was given, or says what it was and what would be right."""
    generator, path = torch.Generator(), CondOT()
    assert check_instance("path", path, ProbabilityPath) is path
    assert check_generator(generator) is generator
    assert check_generator(None) is None
    assert check_dtype(torch.float16) is torch.float16
    assert check_dtype(None) is None
    for device in ("cpu", "cuda:1", torch.device("meta"), None):
        assert check_device(device) is device
    for check, wrong, said in (
        (check_generator, 3, r"^generator is 3, expected a torch\.Generator \(or None\)$"),
        (check_dtype, torch.int64, r"^dtype is torch\.int64, expected a floating-point torch\.dtype$"),
        (check_dtype, "float32", r"^dtype is 'float32', expected"),
        (check_device, "gpu", r"^device is 'gpu', expected one of torch's"),
        (check_device, [], r"^device is \[\], expected one of torch's"),
    ):
        with pytest.raises(ArgumentError, match=said):
            check(wrong)
    with pytest.raises(ArgumentError, match="^path is a MLP, expected a ProbabilityPath$"):
        check_instance("path", MLP(2), ProbabilityPath)
    with pytest.raises(ArgumentError, match="^path is 3, expected an AffinePath$"):
        check_instance("path", 3, AffinePath)


def test_the_bound_of_a_count_is_the_least_that_is_allowed():
    assert check_count("n", 3, 3) == 3
    with pytest.raises(ArgumentError, match="^n is 2, expected a whole number of at least 3$"):
        check_count("n", 2, 3)
    for wrong in (np.True_, float("nan")):
        with pytest.raises(ArgumentError, match="expected a whole number"):
            check_count("n", wrong)
    assert isinstance(check_count("n", np.int64(3)), int)
    assert isinstance(check_number("x", 3), float)
    assert not is_number(np.True_)


def test_long_values_are_shown_by_their_type():
    assert shown("a" * 58) == repr("a" * 58)  # 60 letters with the quotes
    assert shown("a" * 59) == "a str"

    class Lines:
        def __repr__(self):
            return "one\ntwo"

    assert shown(Lines()) == "a Lines"
    assert shown(np.zeros((30, 30))) == "a ndarray"
    assert shown(range(10**6, 10**60, 7)) == "a range"
    assert shown(type("Odd", (Lines,), {})()) == "an Odd"
