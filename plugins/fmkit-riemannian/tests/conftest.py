"""Shared by the tests: manifolds, and points on them."""

from __future__ import annotations

import pytest
import torch

from fmkit_riemannian import Sphere, Torus

SPHERE, TORUS = Sphere(), Torus()


@pytest.fixture(params=[SPHERE, TORUS], ids=["sphere", "torus"])
def manifold(request):
    return request.param


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)
