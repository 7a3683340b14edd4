"""Couplings: which source sample meets which data sample."""

from fmkit.couplings.base import Coupling, check_batches
from fmkit.couplings.conditional import ConditionalOptimalTransport
from fmkit.couplings.conditional_semidiscrete import ConditionalSemidiscrete
from fmkit.couplings.independent import Independent, Paired
from fmkit.couplings.optimal_transport import OptimalTransport
from fmkit.couplings.semidiscrete import Semidiscrete
from fmkit.couplings.sinkhorn import Sinkhorn

__all__ = [
    "ConditionalOptimalTransport",
    "ConditionalSemidiscrete",
    "Coupling",
    "Independent",
    "OptimalTransport",
    "Paired",
    "Semidiscrete",
    "Sinkhorn",
    "check_batches",
]
