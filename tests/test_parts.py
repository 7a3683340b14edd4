"""Parts remember how they were made, once and only, and are torch modules in every other way."""

import copy
import inspect
import io
import pickle

import pytest
import torch

from fmkit.fields import MLP, PredictionField
from fmkit.parts import Part, parameters_of
from fmkit.paths import CondOT
from fmkit.solvers import Heun, ShiftedGrid


class Sample(Part):
    def __init__(self, a: int, b: float = 2.0, *, c: "str | None" = None, **more) -> None:
        super().__init__()
        self.a = a


def test_arguments_are_recorded_as_given_and_defaults_are_not():
    assert Sample(1).arguments == {"a": 1}
    assert Sample(1, 3.0).arguments == {"a": 1, "b": 3.0}
    assert Sample(b=3.0, a=1, c="x").arguments == {"a": 1, "b": 3.0, "c": "x"}
    assert Sample(1, extra=5).arguments == {"a": 1, "extra": 5}


def test_nested_parts_are_registered_once():
    field = PredictionField(MLP(2, 4, 1), CondOT())
    names = [name for name, _ in field.named_modules()]
    assert len(names) == len(set(names))
    assert not any(name.startswith("arguments") for name in names)
    assert field.arguments["network"] is field.network
    assert not any(key.startswith("arguments") for key in field.state_dict())


def test_a_wrong_call_is_pythons_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'sigma'"):
        CondOT(sigma=0.1)
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        Sample()


def test_unknown_keywords_are_not_swallowed():
    for make in (lambda: Heun(10, step_size=0.1), lambda: MLP(2, hidden=3), lambda: ShiftedGrid(scale=2)):
        with pytest.raises(TypeError, match="unexpected keyword"):
            make()


def test_copies_keep_the_arguments_of_their_own_parts():
    field = PredictionField(MLP(2, 4, 1), CondOT())
    twin = copy.deepcopy(field)
    assert twin.arguments["network"] is twin.network
    assert twin.network is not field.network
    assert pickle.loads(pickle.dumps(Heun(3, ShiftedGrid(2.0)))).arguments["steps"] == 3


def test_moves_and_saves_like_a_module():
    field = MLP(2, 4, 1)
    stream = io.BytesIO()
    torch.save(field.state_dict(), stream)
    assert field.double().first.weight.dtype == torch.float64


def test_the_representation_is_the_call():
    assert repr(CondOT(0.25)) == "CondOT(sigma_min=0.25)"
    assert repr(CondOT()) == "CondOT()"


def test_parameters_of_evaluates_annotations():
    parameters = parameters_of(Sample)
    assert list(parameters)[:3] == ["a", "b", "c"]
    assert parameters["a"].annotation is int
    assert parameters["b"].default == 2.0


def test_a_parts_signature_is_its_constructors():
    """Editors and `help` ask for it."""
    shown, own = inspect.signature(Heun), inspect.signature(Heun.__init__)
    assert list(shown.parameters) == list(own.parameters)[1:] == ["steps", "grid"]
    assert inspect.signature(CondOT).parameters.keys() == parameters_of(CondOT).keys()
