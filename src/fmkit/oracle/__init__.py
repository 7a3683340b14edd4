"""Exact marginal fields: what a perfect network would answer, in closed form.

`law`, `mixture` and `boxes` are the data's law, `posterior` is what a point on a path says about it, `field` the oracle
that users hold, and `floor` the least loss any network can reach, and how far above it a network is.
"""

from fmkit.oracle.boxes import Boxes
from fmkit.oracle.field import VIEWS, MixtureOracle
from fmkit.oracle.floor import Estimate, loss_excess, loss_floor
from fmkit.oracle.law import Law
from fmkit.oracle.mixture import Mixture

__all__ = ["VIEWS", "Boxes", "Estimate", "Law", "Mixture", "MixtureOracle", "loss_excess", "loss_floor"]
