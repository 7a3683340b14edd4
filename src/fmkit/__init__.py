"""fmkit: flow matching, from paths to log-likelihoods.

Everything public is reached from here and imported when it is first used: `import fmkit` alone loads no torch and no
plugin.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from fmkit._version import __version__

if TYPE_CHECKING:
    from fmkit import (
        config,
        couplings,
        data,
        errors,
        fields,
        metrics,
        objectives,
        oracle,
        paths,
        randomness,
        registry,
        shapes,
        solvers,
        sources,
        testing,
        training,
        transforms,
    )
    from fmkit.divergence import ExactDivergence, HutchinsonDivergence
    from fmkit.errors import FmkitError
    from fmkit.fields import VectorField
    from fmkit.flow import Flow
    from fmkit.oracle import MixtureOracle
    from fmkit.parts import Part
    from fmkit.paths import ProbabilityPath
    from fmkit.solvers import Solver
    from fmkit.training import Settings, Trainer

_MODULES = (
    "config",
    "couplings",
    "data",
    "errors",
    "fields",
    "metrics",
    "objectives",
    "oracle",
    "paths",
    "randomness",
    "registry",
    "shapes",
    "solvers",
    "sources",
    "testing",
    "training",
    "transforms",
)
_NAMES = {
    "ExactDivergence": "fmkit.divergence",
    "Flow": "fmkit.flow",
    "FmkitError": "fmkit.errors",
    "HutchinsonDivergence": "fmkit.divergence",
    "MixtureOracle": "fmkit.oracle",
    "Part": "fmkit.parts",
    "ProbabilityPath": "fmkit.paths",
    "Settings": "fmkit.training",
    "Solver": "fmkit.solvers",
    "Trainer": "fmkit.training",
    "VectorField": "fmkit.fields",
}

__all__ = [  # noqa: PLE0604 - the two tables above, which are the one list of public names
    "__version__",
    *_MODULES,
    *_NAMES,
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"fmkit.{name}")
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'fmkit' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
