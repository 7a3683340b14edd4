"""What every coupling refuses, by name."""

import pytest
import torch

from fmkit.couplings import Independent
from fmkit.errors import ArgumentError
from fmkit.sources import Gaussian

X = torch.zeros(3, 2)


@pytest.mark.parametrize(
    ("source", "x1", "seed", "message"),
    [
        ("gaussian", X, 0, "^source is 'gaussian'"),
        (Gaussian(), [[1.0]], 0, "^x1 is a list"),
        (Gaussian(), X / 0, 0, "^x1 has 6 non-finite"),
        (Gaussian(), X, -1, "^seed is -1"),
        (Gaussian(), X, 1.5, "^seed is 1.5"),
    ],
)
def test_preparing_on_what_is_none_is_refused(source, x1, seed, message):
    with pytest.raises(ArgumentError, match=message):
        Independent().prepare(source, x1, seed=seed)


def test_there_is_nothing_to_prepare_by_default():
    assert list(Independent().prepare(Gaussian(), X, seed=0)) == []
