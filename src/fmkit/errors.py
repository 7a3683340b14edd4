"""Every error that fmkit raises on purpose.

A message says what was got, where, and what would be right. A user's mistake is never an `assert`.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable


class FmkitError(Exception):
    """The parent of all of fmkit's errors."""


class ArgumentError(FmkitError, ValueError):
    """A value, shape, dtype or range that a part cannot work with."""


class CombinationError(FmkitError, ValueError):
    """Parts that are fine alone and have no meaning together; the message gives the reason."""


class RegistryError(FmkitError, LookupError):
    """A name that no installed package provides, or that two provide."""


class PluginLoadError(RegistryError):
    """An installed plugin that cannot be imported, or does not fit this fmkit."""


class ConfigError(FmkitError, ValueError):
    """A mistake in a configuration.

    Attributes:
        where: the dotted key it stands at.
    """

    def __init__(self, said: str, where: str = "") -> None:
        super().__init__(f"{where}: {said}" if where else said)
        self.said, self.where = said, where


class SolverError(FmkitError, RuntimeError):
    """An integration that did not reach its end."""


class TrainingError(FmkitError, RuntimeError):
    """A training run that cannot go on; the last good checkpoint is kept."""


class SavedFileError(FmkitError, ValueError):
    """A saved flow or checkpoint that is damaged, foreign, or does not fit."""


class HealthWarning(UserWarning):
    """A sign that a training run goes wrong though nothing is broken; see `fmkit.training.signs`."""


class LikelihoodWarning(UserWarning):
    """Log-densities by too coarse a solver.

    Attributes:
        bits: about so many, per dimension, are they off; NaN where that is not known.
    """

    def __init__(self, message: str, bits: float = math.nan) -> None:
        super().__init__(message)
        self.bits = bits


def did_you_mean(got: str, known: Iterable[str]) -> str:
    """`"; did you mean X?"`, or the list of what there is, or nothing."""
    known = sorted(known)
    close = difflib.get_close_matches(got, known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f"; known: {', '.join(known)}" if known else ""
