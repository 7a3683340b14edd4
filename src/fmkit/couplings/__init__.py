"""Couplings: which source sample meets which data sample."""

from fmkit.couplings.base import Coupling, check_batches
from fmkit.couplings.independent import Independent, Paired
from fmkit.couplings.optimal_transport import OptimalTransport

__all__ = ["Coupling", "Independent", "OptimalTransport", "Paired", "check_batches"]
