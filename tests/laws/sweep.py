"""What the sweeps of bad inputs share: families of values without meaning, and the law that each call is held to."""

import math
import warnings

import numpy as np
import pytest
import torch

from fmkit import paths, transforms
from fmkit.errors import FmkitError

NAN, INF = math.nan, math.inf


class Sweep(list):
    """Cases: a call that works and, for each of its arguments, values that have no meaning there."""

    def case(self, name, call, good, /, **bad):
        """`call(**good())` works; with any one argument out of `bad` it must not."""
        self.append(pytest.param(call, good, bad, id=name))

    def values(self):
        """How many bad values there are."""
        return sum(len(values) for case in self for values in case.values[2].values())


def hold(call, good, bad):
    """The law: an error of fmkit's own that says what was wrong, never an answer, never another library's error."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        call(**good())
        failures = [f"{argument} = {label}: {said}" for argument, label, said in _answers(call, good, bad) if said]
    assert not failures, "\n".join(failures)


def _answers(call, good, bad):
    for argument, values in bad.items():
        for label, value in values.items():
            try:
                answer = call(**(good() | {argument: value}))
            except FmkitError as error:
                yield argument, label, "" if len(str(error)) > 20 else f"says only {error}"
            except Exception as error:
                yield argument, label, f"{type(error).__name__}: {error}"
            else:
                yield argument, label, f"answered {answer!r}"


def without(values, *names):
    return {k: v for k, v in values.items() if k not in names}


def generator():
    return torch.Generator().manual_seed(0)


# -- families of bad values -------------------------------------------------------------------------------------------


def x(n=4, d=2, dtype=torch.float32):
    return torch.linspace(-1, 1, n * d, dtype=dtype).reshape(n, d).contiguous()


def spoilt(values, by):
    values = values.clone()
    values.view(-1)[1] = by
    return values


NO_PART = {
    "None": None,
    "a name": "condot",
    "a number": 1,
    "a tensor": x(),
    "a class": paths.CondOT,
    "another kind": transforms.Affine(),
}
NO_POINTS = {
    "None": None,
    "text": "a",
    "number": 1.0,
    "list": [[0.0, 0.0]] * 4,
    "array": np.zeros((4, 2)),
    "integers": torch.zeros(4, 2, dtype=torch.int64),
    "booleans": torch.zeros(4, 2, dtype=torch.bool),
    "complex": torch.zeros(4, 2, dtype=torch.complex64),
    "empty": torch.zeros(0, 2),
    "0-d": torch.tensor(1.0),
    "nan": spoilt(x(), NAN),
    "inf": spoilt(x(), INF),
    "without values": x().to("meta"),
}
NO_EVENTS = NO_POINTS | {"event": x(d=3), "rank": x()[:, None]}
NO_MATCH = NO_EVENTS | {"batch": x(n=5), "double": x(dtype=torch.float64)}
NO_TIMES = {
    "None": None,
    "text": "a",
    "list": [0.5] * 4,
    "array": np.full(4, 0.5),
    "nan": NAN,
    "inf": INF,
    "before": -0.5,
    "after": 1.5,
    "True": True,
    "complex": 0.5j,
    "column": torch.full((4, 1), 0.5),
    "too many": torch.full((5,), 0.5),
    "one": torch.full((1,), 0.5),
    "none": torch.zeros(0),
    "integers": torch.ones(4, dtype=torch.int64),
    "one nan": spoilt(torch.full((4,), 0.5), NAN),
    "one before": spoilt(torch.full((4,), 0.5), -0.1),
    "one after": spoilt(torch.full((4,), 0.5), 1.1),
    "without values": torch.full((4,), 0.5, device="meta"),
}
NO_NUMBER = {"text": "a", "list": [0.5], "nan": NAN, "inf": INF, "True": True, "two": torch.tensor([0.1, 0.2])}
NO_SCALE = NO_NUMBER | {"None": None, "negative": -0.5}
NO_COUNT = {
    "text": "4",
    "list": [4],
    "nan": NAN,
    "inf": INF,
    "negative": -1,
    "zero": 0,
    "2.5": 2.5,
    "2.0": 2.0,
    "True": True,
    "two": torch.tensor([2, 3]),
}
NO_GENERATOR = {"text": "a", "a seed": 0, "a number": 1.0, "numpy's": np.random.default_rng(0)}
NO_SPAN = {
    "None": None,
    "text": "ab",
    "number": 1.0,
    "one": (0.0,),
    "none": (),
    "equal": (0.0, 0.0),
    "turning": (0.0, 1.0, 0.5),
    "nan": (0.0, NAN),
    "inf": (0.0, INF),
    "texts": ("a", "b"),
    "nested": ((0.0,), (1.0,)),
    "booleans": (False, True),
    "square": torch.zeros(2, 2),
    "a None": (0.0, None),
}
