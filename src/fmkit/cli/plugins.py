"""`fmkit plugins list` and `fmkit plugins info`."""

from __future__ import annotations

import inspect
from typing import Any

from fmkit import registry
from fmkit.errors import FmkitError, RegistryError, did_you_mean


def listing(kind: str | None) -> list[dict[str, str]]:
    """Every entry, or those of one kind, as plain data."""
    known = [g.rpartition(".")[2] for g in registry.groups()]
    if kind is not None and kind not in known:
        raise RegistryError(f"no kind of part is called {kind!r}{did_you_mean(kind, known)}")
    return [
        {"kind": e.kind, "name": e.name, "package": e.package, "version": e.version, "value": e.value}
        for e in registry.entries()
        if kind in (None, e.kind)
    ]


def info(name: str) -> dict[str, Any]:
    """One part: where it comes from, its documentation, its parameters, and whether it can be imported."""
    entry = _find(name)
    found: dict[str, Any] = {
        "kind": entry.kind,
        "name": entry.name,
        "package": entry.package,
        "version": entry.version,
        "value": entry.value,
        "requires": [r for r in entry.requires if r.lower().startswith(registry.HOME)],
    }
    from fmkit.parts import parameters_of

    try:
        part = entry.load()
    except FmkitError as error:
        return {**found, "broken": str(error)}
    parameters = parameters_of(part).values() if inspect.isclass(part) else ()
    return {**found, "doc": inspect.getdoc(part) or "", "parameters": [str(p) for p in parameters]}


def _find(name: str) -> registry.Entry:
    """The entry called `name`, `kind/name`, `package/name` or `kind/package/name`."""
    first, _, rest = name.partition("/")
    groups = [g for g in registry.groups() if g.rpartition(".")[2] == first] if rest else []
    bare = rest if groups else name
    hits = [entry for group in groups or registry.groups() if (entry := registry.find_or_none(group, bare)) is not None]
    if len(hits) == 1:
        return hits[0]
    if hits:
        choices = " or ".join(f"{e.kind}/{bare}" for e in hits)
        raise RegistryError(f"{name!r} names {len(hits)} parts; write {choices}")
    known = {e.name for e in registry.entries()}
    raise RegistryError(f"no part named {name!r} is installed{did_you_mean(bare, known)}")


def show_info(found: dict[str, Any]) -> str:
    """The same for people."""
    lines = [f"{found['kind']}/{found['name']}  from {found['package']} {found['version']}  ({found['value']})"]
    lines += [f"needs {r}" for r in found["requires"]]
    if "broken" in found:
        return "\n".join([*lines, f"broken: {found['broken']}"])
    lines += ["", found["doc"], ""]
    lines += [f"  {p}" for p in found["parameters"]] or ["  no parameters"]
    return "\n".join(lines)
