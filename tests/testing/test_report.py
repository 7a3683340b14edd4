"""What a report says, and what pytest makes of it."""

import json
import math

import pytest

from fmkit.couplings import Independent
from fmkit.errors import ArgumentError, FmkitError
from fmkit.paths import ICFM, CondOT
from fmkit.sources import Gaussian
from fmkit.testing import LawBroken, Report, check, parametrize_with_checks
from fmkit.testing.report import Check, Laws, Measured, NotChecked, refusals


class Double(Independent):
    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None):
        i0, i1 = super().pair(x0, x1)
        return i0, i1 // 2 * 2


def finding(value, bound=1.0):
    return Check("kind.name", "a law", lambda trial: Measured(value, bound, "error", "row 3")).run(None)


def test_a_figure_is_kept_up_to_its_bound_and_never_if_it_is_not_a_number():
    statuses = {value: finding(value).status for value in (0.0, 1.0, 1.0000001, math.inf)}
    assert statuses == {0.0: "passed", 1.0: "passed", 1.0000001: "failed", math.inf: "failed"}
    assert finding(math.nan).status == "failed"
    assert json.dumps(finding(math.nan).as_dict(), allow_nan=False)


def test_a_broken_law_is_one_line_with_law_figure_bound_and_place():
    report = Report("Part", "kind", (finding(2.5), finding(0.5)))
    with pytest.raises(LawBroken) as caught:
        report.raise_if_failed()
    head, *lines = str(caught.value).splitlines()
    assert head == "Part breaks 1 law of a kind"
    assert lines == ["kind.name BROKEN: a law; error 2.5 (at most 1), row 3"]
    assert isinstance(caught.value, FmkitError | AssertionError)


def test_errors_are_broken_laws_and_what_cannot_be_tried_is_neither():
    def fails(trial):
        raise ZeroDivisionError("of 1 by 0")

    def skips(trial):
        raise NotChecked("no such thing")

    laws = Laws("kind")
    laws("a", "first")(fails)
    laws("b", "second")(skips)
    report = laws.report(object(), None)
    assert [f.status for f in report.findings] == ["failed", "unchecked"]
    assert "ZeroDivisionError: of 1 by 0" in report.failed[0].line
    assert not Report("Part", "kind", report.unchecked).ok  # nothing was checked
    Report("Part", "kind", report.unchecked).raise_if_failed()


def test_only_an_argument_error_is_a_refusal():
    def raises(error):
        raise error

    cases = {"fine": ArgumentError("x"), "foreign": ValueError("x")}
    measured = refusals([(name, lambda e=e: raises(e)) for name, e in cases.items()] + [("silent", lambda: 0)])
    assert measured.value == 2
    assert measured.where == "foreign raised ValueError, not ArgumentError; silent was accepted"


def test_a_kind_without_laws_is_refused():
    with pytest.raises(ArgumentError, match="no laws for a Gaussian; known kinds: ProbabilityPath"):
        check(Gaussian())


@parametrize_with_checks([CondOT(), ICFM()])
def test_parametrized_paths(check):
    assert check().status == "passed"


@parametrize_with_checks([Double()], expected_failures={"coupling.marginals": "doubles", "coupling.conditions": "too"})
def test_an_expected_failure_is_one(check):
    check()


def marks(decorator):
    return {case.id: list(case.marks) for case in decorator.args[1]}


def test_expected_failures_are_strict_and_their_names_are_looked_at():
    cases = marks(parametrize_with_checks([CondOT()], expected_failures={"path.velocity": "reason"}))
    (mark,) = cases["CondOT-0-path.velocity"]
    assert mark.name == "xfail"
    assert mark.kwargs == {"reason": "reason", "raises": LawBroken, "strict": True}
    assert sum(bool(found) for found in cases.values()) == 1
    with pytest.raises(ArgumentError, match="'path.velocty' is no check of these parts; did you mean 'path.velocity'"):
        parametrize_with_checks([CondOT()], expected_failures={"path.velocty": "reason"})


def test_a_law_that_cannot_be_tried_skips_its_test():
    paired = {case.id: case.values[0] for case in parametrize_with_checks([Double()]).args[1]}
    with pytest.raises(LawBroken, match="keeps its marginals"):
        paired["Double-0-coupling.marginals"]()
    geodesic = {case.id: case.values[0] for case in parametrize_with_checks([_NotAffine()]).args[1]}
    with pytest.raises(pytest.skip.Exception, match="not affine"):
        geodesic["_NotAffine-0-path.rates"]()


class _NotAffine(CondOT.__mro__[2]):
    def sample(self, t, x0, x1, *, generator=None):
        return CondOT().sample(t, x0, x1)
