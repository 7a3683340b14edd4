"""Derivatives in time: against closed forms, for any nesting of outputs, whatever memory the times have."""

import subprocess
import sys

import pytest
import torch

from fmkit.differentiation import time_derivative


@pytest.mark.parametrize("shape", [(), (5,), (5, 1, 1)])
def test_the_value_and_its_rate(shape):
    t = torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value, rate = time_derivative(lambda s: torch.exp(2 * s), t)
    torch.testing.assert_close(value, torch.exp(2 * t))
    torch.testing.assert_close(rate, 2 * torch.exp(2 * t))


def test_every_time_has_its_own_rate_and_outputs_may_be_nested():
    t = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
    (square, [cube]), (d_square, [d_cube]) = time_derivative(lambda s: (s**2, [s**3]), t)
    assert (square.tolist(), cube.tolist()) == ([0.0, 1.0, 4.0], [0.0, 1.0, 8.0])
    assert (d_square.tolist(), d_cube.tolist()) == ([0.0, 2.0, 4.0], [0.0, 3.0, 12.0])


def test_times_without_memory_of_their_own():
    """Forward mode refuses the memory of an expanded number."""
    t = torch.tensor(0.5, dtype=torch.float64).expand(4)
    assert time_derivative(lambda s: s**2, t)[1].tolist() == [1.0] * 4


def test_a_first_use_warns_of_nothing():
    """torch scripts its decompositions then, and warns of its own scripting."""
    program = "import torch, fmkit.differentiation as d; d.time_derivative(torch.sin, torch.ones(2))"
    done = subprocess.run([sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
