"""What the table of two-dimensional transport is made of: its rows, data sets and seeds, and what was published.

From [SF]2M (Tong et al. 2024, arXiv 2307.03672), Table 2. A row of one's own is a path and a coupling too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from fmkit.arguments import check_count, shown
from fmkit.errors import ArgumentError, did_you_mean

if TYPE_CHECKING:
    from fmkit.couplings import Coupling
    from fmkit.data import DataSet
    from fmkit.paths import ProbabilityPath

SEEDS = (42, 43, 44, 45, 46)
SIGMA, BATCH, EULER_STEPS, RATE, DECAY, WIDTH, DEPTH = 0.1, 512, 100, 1e-3, 1e-5, 64, 3


PartSpec = str | dict[str, Any]
CONDOT, ICFM = {"name": "condot", "sigma_min": SIGMA}, {"name": "icfm", "sigma": SIGMA}


@dataclass(frozen=True)
class Row:
    """A method: how the table calls it, and its parts as a configuration names them."""

    label: str
    path: PartSpec = field(default_factory=lambda: ICFM)
    coupling: PartSpec = "independent"

    def parts(self) -> tuple[ProbabilityPath, Coupling]:
        """The path and the coupling.

        Raises:
            ConfigError: for names that are not installed, or parameters that do not fit.
        """
        from fmkit.couplings import Coupling
        from fmkit.paths import ProbabilityPath
        from fmkit.specs import build

        return build(ProbabilityPath, self.path, "path"), build(Coupling, self.coupling, "coupling")


ROWS = {
    "fm": Row("FM", CONDOT, "independent"),
    "i-cfm": Row("I-CFM", ICFM, "independent"),
    "ot-cfm": Row("OT-CFM", ICFM, "ot"),
    "semidiscrete": Row("semidiscrete OT", ICFM, "semidiscrete"),
    "sf2m-exact": Row("[SF]2M exact", {"name": "schrodinger-bridge", "sigma": SIGMA}, "ot"),
}
REFERENCE = "reference"
DATA = {"8gaussians": "N → 8 Gaussians", "moons": "N → moons"}
# What a data set is told beside the number of points: scikit-learn's moons have equal halves.
DRAWN = {"moons": {"even": True}}


@dataclass(frozen=True)
class Published:
    """A figure of the publication: mean and standard deviation over five seeds."""

    w2: tuple[float, float]
    npe: tuple[float, float]


PUBLISHED = {
    ("ot-cfm", "8gaussians"): Published((0.303, 0.043), (0.031, 0.027)),
    ("ot-cfm", "moons"): Published((0.130, 0.016), (0.083, 0.009)),
    ("i-cfm", "8gaussians"): Published((0.373, 0.103), (0.202, 0.055)),
    ("i-cfm", "moons"): Published((0.178, 0.014), (0.891, 0.120)),
    ("fm", "8gaussians"): Published((0.343, 0.058), (0.190, 0.054)),
    ("fm", "moons"): Published((0.209, 0.055), (0.762, 0.099)),
    ("sf2m-exact", "8gaussians"): Published((0.275, 0.058), (0.016, 0.012)),
    ("sf2m-exact", "moons"): Published((0.124, 0.023), (0.053, 0.038)),
}


@dataclass(frozen=True)
class Protocol:
    """What a cell costs. Anything below the defaults is another experiment, and is said to be one wherever it is shown.

    Attributes:
        steps: of training, >= 1.
        points: for training, as test set, and generated: so many of each, >= 2.

    Raises:
        ArgumentError: for fewer.
    """

    steps: int = 20_000
    points: int = 10_000

    def __post_init__(self) -> None:
        check_count("steps", self.steps)
        check_count("points", self.points, least=2)

    @property
    def full(self) -> bool:
        """Whether it is the published one."""
        return self == Protocol()


def dataset(name: str, protocol: Protocol) -> DataSet:
    """A registered data set, with as many points as the protocol says.

    Raises:
        ConfigError: if none of that name is installed, or its points are not drawn by n_train and n_test.
    """
    from fmkit.data import DataSet
    from fmkit.specs import build

    points = {"n_train": protocol.points, "n_test": protocol.points}
    return build(DataSet, {"name": name, **points, **DRAWN.get(name, {})}, "data")


def check_cell(row: str, data: str, seed: int, rows: Mapping[str, Row] = ROWS) -> None:
    """Refuse what is no cell: before the first of many is begun.

    Args:
        row: one of `rows`.
        data: a registered data set of points that are drawn by n_train and n_test.
        seed: of everything.
        rows: those of the table, and perhaps others.

    Raises:
        ArgumentError: for an unknown row, a name with other signs, or a seed below 0.
        ConfigError: if the data set or a part of the row is not installed, or parameters do not fit.
    """
    if not isinstance(row, str) or row not in rows:
        raise ArgumentError(f"row is {shown(row)}, which the table has not{did_you_mean(str(row), rows)}")
    for name, value in (("row", row), ("data", data)):  # they become names of files
        if not isinstance(value, str) or not re.fullmatch("[a-z0-9][a-z0-9-]*", value) or value == REFERENCE:
            raise ArgumentError(f"{name} is {shown(value)}, expected small letters, digits and hyphens, as sb-cfm")
    check_count("seed", seed, least=0)
    rows[row].parts()
    dataset(data, Protocol(points=2))
