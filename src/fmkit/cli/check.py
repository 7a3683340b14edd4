"""`fmkit plugins check`: registered parts under the laws of their kinds, built with their defaults or as told."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fmkit import registry
from fmkit.cli.plugins import _find
from fmkit.config import read_word
from fmkit.errors import ArgumentError, ConfigError, FmkitError, PluginLoadError, RegistryError, did_you_mean

# The shapes of points that the kit draws for a part that asks for one: vectors, or images for what takes only those.
EVENT_SHAPES = ((3,), (1, 8, 8))
DEPTH = 2  # parts within parts that are built for want of an argument


def check_named(name: str, arguments: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
    """Check one part by its name.

    Args:
        name: as `vp`, `paths/vp`, `package/name` or `kind/package/name`.
        arguments: constructor arguments as plain data; one that is missing and is a part is the first registered one
            that can be built.

    Returns:
        One mapping for each law: part, kind, id, law, status ("passed", "failed", "unchecked"), measured, bound, line.

    Raises:
        RegistryError: if no part has that name, or several have.
        PluginLoadError: if its package is broken.
        ArgumentError: if there are no laws for its kind, or it needs arguments that cannot be guessed: which they are.
        ConfigError: if an argument given does not fit.
    """
    return _check(_find(name), arguments or {})


def _check(entry: registry.Entry, arguments: Mapping[str, Any]) -> list[dict[str, Any]]:
    from fmkit import testing

    cls = entry.load()
    if not (inspect.isclass(cls) and testing.has_kit(cls)):
        raise ArgumentError(
            f"there are no laws for {entry.label}; paths, solvers, fields, couplings, objectives and divergences do"
        )
    report = testing.check(_build(entry, arguments, DEPTH))
    label = {"part": entry.qualified, "kind": entry.kind}
    return [{**label, **finding.as_dict()} for finding in report.findings]


def arguments_of(words: Iterable[str]) -> dict[str, Any]:
    """Constructor arguments from `key=value` words, as `sigma=0.3 path=vp path.beta_max=10`.

    Raises:
        ConfigError: for a word that is no `key=value`.
    """
    found: dict[str, Any] = {}
    for key, value in sorted(map(read_word, words), key=lambda pair: pair[0].count(".")):
        *parents, last = key.split(".")
        inner = found
        for parent in parents:
            known = inner.get(parent)
            inner[parent] = inner = dict(known) if isinstance(known, Mapping) else {"name": known} if known else {}
        inner[last] = value
    return found


def check_all(package: str | None = None) -> Iterator[list[dict[str, Any]]]:
    """The findings about every registered part that has laws, or every one of a package, part by part.

    A part that cannot be built without arguments has one row, not checked; one that cannot be imported, a failed one.

    Raises:
        RegistryError: if the package provides no parts.
    """
    from fmkit import testing

    everyone = registry.entries()
    owners = {entry.package for entry in everyone}
    if package is not None and package.replace("_", "-").lower() not in owners:
        raise RegistryError(f"no package {package!r} provides parts{did_you_mean(package, owners)}")
    for entry in everyone:
        if package is not None and entry.package != package.replace("_", "-").lower():
            continue
        row = {"part": entry.qualified, "kind": entry.kind, "id": "made", "law": "it can be made with its defaults"}
        try:
            cls = entry.load()
            if inspect.isclass(cls) and testing.has_kit(cls):
                yield _check(entry, {})
        except FmkitError as error:
            status = "failed" if isinstance(error, PluginLoadError) else "unchecked"
            yield [{**row, "status": status, "measured": None, "bound": None, "line": str(error)}]


def _build(entry: registry.Entry, arguments: Mapping[str, Any], depth: int) -> Any:
    from fmkit import specs
    from fmkit.parts import parameters_of

    cls, values, lacking, asked = entry.load(), dict(arguments), [], False
    for name, parameter in parameters_of(cls).items():
        if name in values or parameter.default is not parameter.empty:
            continue
        if name == "event_shape":
            asked = True
        elif (part := _any_of(parameter.annotation, depth)) is not None:
            values[name] = part
        else:
            shown = inspect.formatannotation(parameter.annotation)
            lacking.append(name if parameter.annotation is parameter.empty else f"{name}: {shown}")
    if lacking:
        first = lacking[0].partition(":")[0]
        raise ArgumentError(
            f"{entry.label} needs {', '.join(lacking)}; hand it over as {first}=VALUE, or use fmkit.testing from Python"
        )
    if not asked:
        return specs.build_class(cls, values, entry.qualified, specs.Context())
    vectors, images = ({**values, "event_shape": list(shape)} for shape in EVENT_SHAPES)
    try:
        return specs.build_class(cls, vectors, entry.qualified, specs.Context())
    except ConfigError as error:
        if "event_shape" not in error.said:
            raise
        return specs.build_class(cls, images, entry.qualified, specs.Context())


def _any_of(annotation: Any, depth: int) -> Any:
    """Some registered part of a kind that the annotation admits, those that need the fewest parts first; or None."""
    from fmkit import specs
    from fmkit.parts import parameters_of

    if depth == 0:
        return None
    for kind in specs.kinds_in(annotation):
        simple = []
        for entry in registry.entries(kind.group):
            try:
                needs = [p for p in parameters_of(entry.load()).values() if p.default is p.empty]
                simple.append((len(needs), sum(bool(specs.kinds_in(p.annotation)) for p in needs), entry))
            except FmkitError:
                continue
        for _, _, entry in sorted(simple, key=lambda s: s[1::-1]):
            try:
                return _build(entry, {}, depth - 1)
            except FmkitError:
                continue
    return None


def check_words(
    words: Iterable[str], everything: bool = False, package: str | None = None
) -> Iterator[tuple[bool, list[dict[str, Any]]]]:
    """The findings about each part, in turn, and whether it was asked for by its name.

    Args:
        words: names, and `key=value` arguments for a single one.
        everything: every registered part instead.
        package: every part of this package instead.

    Raises:
        ArgumentError: for no name at all, or arguments for several parts; otherwise as `check_named` and `check_all`.
    """
    names = [word for word in words if "=" not in word]
    arguments = arguments_of(word for word in words if "=" in word)
    if everything or package is not None:
        if names or arguments:
            raise ArgumentError(f"{(names or list(arguments))[0]!r} is not wanted beside --all or --package")
        yield from ((False, rows) for rows in check_all(package))
        return
    if not names:
        raise ArgumentError("name a part, as vp or my-package/my-path; or ask for --all or --package NAME")
    if arguments and len(names) > 1:
        raise ArgumentError(f"{', '.join(arguments)} cannot be for {len(names)} parts; check them one at a time")
    yield from ((True, check_named(name, arguments)) for name in names)


def ok(rows: list[dict[str, Any]], named: bool = True) -> bool:
    """Whether none is broken; and of a part asked for by its name, whether some law was checked."""
    held = any(r["status"] == "passed" for r in rows) or not named
    return held and not any(r["status"] == "failed" for r in rows)


def show(rows: list[dict[str, Any]]) -> str:
    """The same for people: a line for each law, those that are broken last, and a verdict."""
    order = {"passed": 0, "unchecked": 1, "failed": 2}
    lines = [r["line"] for r in sorted(rows, key=lambda r: order[r["status"]])]
    counts = {status: sum(r["status"] == status for r in rows) for status in order}
    verdict = f"{counts['passed']} laws hold, {counts['failed']} broken, {counts['unchecked']} not checked"
    return "\n".join([*lines, f"{rows[0]['part']} ({rows[0]['kind']}): {verdict}"])
