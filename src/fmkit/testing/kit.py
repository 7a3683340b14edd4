"""Which kit is for which kind of part, and the laws as tests for pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from fmkit.couplings import Coupling
from fmkit.divergence import Divergence
from fmkit.errors import ArgumentError, did_you_mean
from fmkit.fields import VectorField
from fmkit.objectives import Objective
from fmkit.parts import Part
from fmkit.paths import ProbabilityPath
from fmkit.solvers import Solver
from fmkit.testing import couplings, divergences, fields, objectives, paths, solvers
from fmkit.testing.report import UNCHECKED, Check, Finding, LawBroken, Laws, Report

_KITS: dict[type[Part], tuple[Laws, Callable[..., Any]]] = {
    ProbabilityPath: (paths.LAWS, paths.Trial.of),
    Solver: (solvers.LAWS, solvers.Trial.of),
    VectorField: (fields.LAWS, fields.Trial.of),
    Coupling: (couplings.LAWS, couplings.Trial.of),
    Objective: (objectives.LAWS, objectives.Trial.of),
    Divergence: (divergences.LAWS, divergences.Trial.of),
}


def has_kit(cls: type) -> bool:
    """Whether there are laws for parts of this class."""
    return any(issubclass(cls, kind) for kind in _KITS)


def check(part: Part, **options: Any) -> Report:
    """Try every law of the part's kind.

    Args:
        part: a path, solver, field, coupling, objective or divergence.
        **options: what the check of its kind takes, as `sample_pair` of `check_path`.

    Raises:
        ArgumentError: if there are no laws for its kind.

    Examples:
        >>> import fmkit
        >>> from fmkit.testing import check
        >>> check(fmkit.couplings.Independent()).ok
        True
    """
    laws, trial_of = _kit(part)
    return laws.report(part, trial_of(part, **options))


def _kit(part: Part) -> tuple[Laws, Callable[..., Any]]:
    for kind, kit in _KITS.items():
        if isinstance(part, kind):
            return kit
    known = ", ".join(kind.__name__ for kind in _KITS)
    raise ArgumentError(f"there are no laws for a {type(part).__name__}; known kinds: {known}")


def parametrize_with_checks(
    parts: Iterable[Part], expected_failures: Mapping[str, str] | None = None, **options: Any
) -> Any:
    """A decorator for pytest: one test for each part and law. The test takes `check` and calls it.

        @parametrize_with_checks([MyPath()], expected_failures={"path.shapes": "broadcasts x0 on purpose"})
        def test_the_laws_hold(check):
            check()

    Args:
        parts: the parts.
        expected_failures: reasons by the check's name; strict: an expected failure that passes is a failure.
        **options: for every part, what the check of its kind takes.

    Raises:
        ArgumentError: for the name of a check that none of the parts has.
    """
    import pytest  # here: only those who test need it

    expected, cases, seen = dict(expected_failures or {}), [], set()
    for number, part in enumerate(parts):
        laws, trial_of = _kit(part)
        for law in laws.checks:
            seen.add(law.id)
            strict = (
                pytest.mark.xfail(reason=expected[law.id], raises=LawBroken, strict=True) if law.id in expected else ()
            )
            name = f"{type(part).__name__}-{number}-{law.id}"
            cases.append(pytest.param(_bound(laws, law, part, trial_of, options), marks=strict, id=name))
    for name in expected:
        if name not in seen:
            raise ArgumentError(f"{name!r} is no check of these parts{did_you_mean(name, seen)}")
    return pytest.mark.parametrize("check", cases)


def _bound(
    laws: Laws, law: Check, part: Part, trial_of: Callable[..., Any], options: Mapping[str, Any]
) -> Callable[[], Finding]:
    """A call that raises where the law is broken, and skips the test where it cannot be tried."""

    def run() -> Finding:
        finding = laws.findings(trial_of(part, **options), law.id)[-1]
        if finding.status == UNCHECKED:
            import pytest

            pytest.skip(finding.said)
        Report(type(part).__name__, law.id.partition(".")[0], (finding,)).raise_if_failed()
        return finding

    return run
