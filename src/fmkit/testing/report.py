"""What a conformance kit says: which law was measured, by how much it is missed, and where to look.

A check passes where  measured <= bound.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from fmkit.errors import ArgumentError, FmkitError
from fmkit.testing.randomness import preserved

PASSED, FAILED, UNCHECKED = "passed", "failed", "unchecked"


class LawBroken(FmkitError, AssertionError):
    """A part that breaks a law of its kind; the message has one line for each law broken."""


class NotChecked(Exception):
    """Raised by a check that has no meaning for a part, with the reason; the finding is then `unchecked`."""


class Measured(NamedTuple):
    """What a check measured.

    Attributes:
        value: the figure, kept where it is at most `bound`.
        bound: the largest figure allowed.
        what: what the figure is, as "relative error".
        where: where it was found, as "row 3, t = 0.41".
    """

    value: float
    bound: float
    what: str
    where: str = ""


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        id: the check's name, as "path.velocity".
        law: the law in words.
        status: "passed", "failed" or "unchecked".
        measured: the figure, or None where nothing could be measured.
        bound: the largest figure allowed, or None.
        said: what was measured and where, or why it was not.
    """

    id: str
    law: str
    status: str
    measured: float | None = None
    bound: float | None = None
    said: str = ""

    @property
    def line(self) -> str:
        """The finding in one line."""
        figure = "" if self.measured is None else f" {self.measured:.3g} (at most {self.bound:.3g})"
        said = self.said.partition("@")[0] + "@" if self.status == PASSED else self.said  # no place to look at
        detail = said if self.measured is None else said.replace("@", figure.strip(), 1)
        verdict = {PASSED: "holds", FAILED: "BROKEN", UNCHECKED: "not checked"}[self.status]
        return " ".join(f"{self.id} {verdict}: {self.law}; {detail}".split())

    def as_dict(self) -> dict[str, Any]:
        """The finding as plain data; a figure that is not finite is None there."""
        finite = self.measured is not None and math.isfinite(self.measured)
        return {
            "id": self.id,
            "law": self.law,
            "status": self.status,
            "measured": self.measured if finite else None,
            "bound": self.bound,
            "line": self.line,
        }


@dataclass(frozen=True)
class Check:
    """One law, and how it is measured on a trial: a part with all that is needed to try it.

    Attributes:
        id: its name, as "path.velocity".
        law: the law in words.
        measure: from the trial to what was measured; it may raise `NotChecked`.
        needs: checks of laws without which this one says nothing: while one of them is broken it is not tried.
    """

    id: str
    law: str
    measure: Callable[[Any], Measured]
    needs: tuple[str, ...] = ()

    def run(self, trial: Any) -> Finding:
        """Measure. An error counts as a law broken; the global random generators are left as they were."""
        with preserved(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what a part says by the way is no law
            try:
                got = self.measure(trial)
            except NotChecked as reason:
                return Finding(self.id, self.law, UNCHECKED, said=str(reason))
            except Exception as error:
                return Finding(self.id, self.law, FAILED, said=f"{type(error).__name__}: {error}")
        status = PASSED if got.value <= got.bound else FAILED  # NaN fails
        where = f", {got.where}" if got.where else ""
        return Finding(self.id, self.law, status, float(got.value), float(got.bound), f"{got.what} @{where}")

    def after(self, broken: str) -> Finding:
        """What is said instead of measuring while a law that this one needs is broken."""
        return Finding(self.id, self.law, UNCHECKED, said=f"{broken} is broken, and has to be repaired first")


@dataclass
class Laws:
    """The laws of one kind, in the order they are checked; `laws(name, sentence)` decorates a measuring function.

    A law that `needs` others comes after them.
    """

    kind: str
    checks: list[Check] = field(default_factory=list)

    def __call__(
        self, name: str, law: str, needs: Sequence[str] = ()
    ) -> Callable[[Callable[[Any], Measured]], Callable[[Any], Measured]]:
        def add(measure: Callable[[Any], Measured]) -> Callable[[Any], Measured]:
            needed = tuple(f"{self.kind}.{other}" for other in needs)
            self.checks.append(Check(f"{self.kind}.{name}", law, measure, needed))
            return measure

        return add

    def findings(self, trial: Any, only: str | None = None) -> list[Finding]:
        """Every law measured on a trial, or one (the last returned) with those it needs."""
        found: dict[str, Finding] = {}
        broken: dict[str, str] = {}  # by a check's name, the law that has to hold first
        for check in self.checks:
            if only is None or check.id == only or check.id in self._needed(only):
                first = next((broken[n] for n in check.needs if n in broken), None)
                found[check.id] = check.run(trial) if first is None else check.after(first)
                if first is not None or found[check.id].status == FAILED:
                    broken[check.id] = first or check.id
        return list(found.values())

    def _needed(self, name: str) -> set[str]:
        check = next(c for c in self.checks if c.id == name)
        return {other for need in check.needs for other in (need, *self._needed(need))}

    def report(self, part: Any, trial: Any) -> Report:
        """Every law of the kind, measured on a trial of `part`."""
        return Report(type(part).__name__, self.kind, tuple(self.findings(trial)))


@dataclass(frozen=True)
class Report:
    """Everything that was found about one part.

    Attributes:
        part: the name of its class.
        kind: its kind, as "path".
        findings: one for each law, in the order checked.

    Examples:
        >>> import fmkit
        >>> from fmkit.testing import check_path
        >>> report = check_path(fmkit.paths.CondOT())
        >>> report.ok, [f.id for f in report.failed]
        (True, [])
    """

    part: str
    kind: str
    findings: tuple[Finding, ...]

    def _of(self, status: str) -> tuple[Finding, ...]:
        return tuple(f for f in self.findings if f.status == status)

    @property
    def failed(self) -> tuple[Finding, ...]:
        """The laws broken."""
        return self._of(FAILED)

    @property
    def passed(self) -> tuple[Finding, ...]:
        """The laws that hold."""
        return self._of(PASSED)

    @property
    def unchecked(self) -> tuple[Finding, ...]:
        """The laws that could not be tried, with the reason in `said`."""
        return self._of(UNCHECKED)

    @property
    def ok(self) -> bool:
        """Whether some law was checked and none is broken."""
        return bool(self.passed) and not self.failed

    def raise_if_failed(self) -> None:
        """Raise if a law is broken.

        Raises:
            LawBroken: with one line for each law: which, by how much, and where to look.
        """
        if self.failed:
            count = "1 law" if len(self.failed) == 1 else f"{len(self.failed)} laws"
            raise LawBroken("\n".join([f"{self.part} breaks {count} of a {self.kind}", *(f.line for f in self.failed)]))

    def __str__(self) -> str:
        return "\n".join([f"{self.part} ({self.kind})", *(f"  {f.line}" for f in self.findings)])


def refusals(cases: Iterable[tuple[str, Callable[[], Any]]]) -> Measured:
    """How many of the calls do not raise an ArgumentError; each is named by what is wrong with it."""
    missed = []
    for name, call in cases:
        try:
            call()
        except ArgumentError:
            continue
        except Exception as error:
            missed.append(f"{name} raised {type(error).__name__}, not ArgumentError")
        else:
            missed.append(f"{name} was accepted")
    return Measured(len(missed), 0, "not refused:", "; ".join(missed))


def faults(said: Sequence[str], what: str = "faults:") -> Measured:
    """A count of things found wrong, none of which is allowed."""
    return Measured(len(said), 0, what, "; ".join(said))
