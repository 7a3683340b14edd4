"""The laws of every kind of part, as a kit: for plugin authors, and for fmkit itself.

    from fmkit.testing import check_path

    check_path(MyPath()).raise_if_failed()     # one line for each law broken: which, by how much, where to look

Everything is seeded and takes a second or two on one core. `fmkit plugins check NAME` runs the same from the shell.
"""

from fmkit.testing.couplings import check_coupling
from fmkit.testing.divergences import check_divergence
from fmkit.testing.fields import check_field
from fmkit.testing.kit import check, has_kit, parametrize_with_checks
from fmkit.testing.objectives import check_objective
from fmkit.testing.paths import check_path
from fmkit.testing.problems import Problem
from fmkit.testing.report import Check, Finding, LawBroken, Report
from fmkit.testing.solvers import check_solver

__all__ = [
    "Check",
    "Finding",
    "LawBroken",
    "Problem",
    "Report",
    "check",
    "check_coupling",
    "check_divergence",
    "check_field",
    "check_objective",
    "check_path",
    "check_solver",
    "has_kit",
    "parametrize_with_checks",
]
