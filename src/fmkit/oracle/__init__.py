"""Exact marginal fields: what a perfect network would answer, in closed form.

`mixture` is the data's law, `posterior` what a point on a path says about it, `field` the oracle that users hold, and
`floor` the least loss any network can reach.
"""

from fmkit.oracle.field import VIEWS, MixtureOracle
from fmkit.oracle.floor import Floor
from fmkit.oracle.mixture import Mixture

__all__ = ["VIEWS", "Floor", "Mixture", "MixtureOracle"]
