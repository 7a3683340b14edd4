from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import pytest
import torch

from fmkit.arguments import check_arguments, check_count, check_number, checked, is_number, shown
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
