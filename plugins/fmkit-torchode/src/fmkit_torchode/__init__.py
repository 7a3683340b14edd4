"""Batch-parallel adaptive solvers for fmkit, through torchode: every sample has its own step size."""

from fmkit_torchode.solvers import Dopri5, Heun, Torchode, Tsit5

__all__ = ["Dopri5", "Heun", "Torchode", "Tsit5"]
