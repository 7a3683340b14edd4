"""Gauss's rule on [0, 1]: n nodes are exact for polynomials below degree 2n, and no further."""

import pytest
import torch

from fmkit.quadrature import gauss


@pytest.mark.parametrize("n", [1, 2, 5, 48])
def test_n_nodes_are_exact_for_polynomials_below_degree_2n(n):
    u, w = gauss(n)
    assert u.dtype == w.dtype == torch.float64
    for degree in range(2 * n):
        assert (w * u**degree).sum().item() == pytest.approx(1 / (degree + 1), rel=1e-12)
    if n <= 5:
        assert abs((w * u ** (2 * n)).sum().item() * (2 * n + 1) - 1) > 1e-6
