"""Solvers: own fixed-step methods first, torchdiffeq's and scipy's beside them, and SDEs."""

from fmkit.solvers.base import Solution, Solver
from fmkit.solvers.fixed_step import FixedStep
from fmkit.solvers.grids import ListedGrid, ShiftedGrid, TimeGrid, UniformGrid
from fmkit.solvers.multistep import AB2, AB3, AB4, AdamsBashforth
from fmkit.solvers.runge_kutta import RK4, Euler, Heun, Midpoint, RungeKutta, Tableau
from fmkit.solvers.scipy import DOP853, LSODA, Radau, Scipy
from fmkit.solvers.sde import EulerMaruyama, HeunSDE, SDESolver
from fmkit.solvers.torchdiffeq import (
    Adaptive,
    AdaptiveHeun,
    Bosh3,
    Dopri5,
    Dopri8,
    Fehlberg2,
    FixedGrid,
    TorchdiffeqEuler,
    TorchdiffeqExplicitAdams,
    TorchdiffeqHeun2,
    TorchdiffeqHeun3,
    TorchdiffeqImplicitAdams,
    TorchdiffeqMidpoint,
    TorchdiffeqRK4,
)

__all__ = [
    "AB2",
    "AB3",
    "AB4",
    "DOP853",
    "LSODA",
    "RK4",
    "AdamsBashforth",
    "Adaptive",
    "AdaptiveHeun",
    "Bosh3",
    "Dopri5",
    "Dopri8",
    "Euler",
    "EulerMaruyama",
    "Fehlberg2",
    "FixedGrid",
    "FixedStep",
    "Heun",
    "HeunSDE",
    "ListedGrid",
    "Midpoint",
    "Radau",
    "RungeKutta",
    "SDESolver",
    "Scipy",
    "ShiftedGrid",
    "Solution",
    "Solver",
    "Tableau",
    "TimeGrid",
    "TorchdiffeqEuler",
    "TorchdiffeqExplicitAdams",
    "TorchdiffeqHeun2",
    "TorchdiffeqHeun3",
    "TorchdiffeqImplicitAdams",
    "TorchdiffeqMidpoint",
    "TorchdiffeqRK4",
    "UniformGrid",
]
