"""The JSON schema of a configuration, for editors: every installed part with its parameters."""

from __future__ import annotations

import inspect
from typing import Any

import pydantic

from fmkit import registry
from fmkit.config import RunConfig
from fmkit.errors import FmkitError
from fmkit.parts import parameters_of
from fmkit.specs import kinds_in


def schema() -> dict[str, Any]:
    """The JSON schema of a configuration, for editors: every installed part with its parameters."""
    from fmkit import couplings, data, fields, objectives, paths, solvers, sources, training

    kinds = {
        "data": data.DataSet,
        "path": paths.ProbabilityPath,
        "source": sources.Source,
        "coupling": couplings.Coupling,
        "time": objectives.TimeSampler,
        "objective": objectives.Objective,
        "field": fields.VectorField,
        "solver": solvers.Solver,
    }
    whole = RunConfig.model_json_schema()
    for key, kind in kinds.items():
        default = {k: v for k, v in whole["properties"][key].items() if k == "default"}
        whole["properties"][key] = {**_kind_schema(kind.group), **default}
    whole["properties"]["callbacks"]["items"] = _kind_schema(training.Callback.group)
    engine = whole["properties"]["engine"]
    engine["anyOf"] = [*_kind_schema(training.Engine.group)["anyOf"], {"type": "null"}]
    settings = training.Settings.model_json_schema()
    settings["properties"].pop("seed")
    whole["properties"]["trainer"] = settings
    return whole


def _kind_schema(group: str) -> dict[str, Any]:
    options: list[dict[str, Any]] = [{"enum": _names(group)}]
    for entry in registry.entries(group):
        try:
            cls = entry.load()
        except FmkitError:
            continue  # a broken plugin breaks only itself
        options.append(_part_schema(entry.name, cls))
    return {"anyOf": options}


def _names(group: str) -> list[str]:
    return sorted({e.name for e in registry.entries(group)})


def _part_schema(name: str, cls: type) -> dict[str, Any]:
    properties: dict[str, Any] = {"name": {"const": name}}
    for key, parameter in parameters_of(cls).items():
        nested = kinds_in(parameter.annotation)
        try:
            properties[key] = (
                {"anyOf": [{"enum": _names(kind.group)} for kind in nested] + [{"type": ["object", "null"]}]}
                if nested
                else pydantic.TypeAdapter(parameter.annotation).json_schema()
            )
        except (pydantic.errors.PydanticUserError, pydantic.errors.PydanticSchemaGenerationError):
            properties[key] = {}  # a tensor, a function: its own rules apply
        if parameter.default is not inspect.Parameter.empty and isinstance(parameter.default, str | int | float | bool):
            properties[key]["default"] = parameter.default
    summary = (inspect.getdoc(cls) or "").split("\n")[0]
    return {
        "type": "object",
        "description": summary,
        "properties": properties,
        "required": ["name"],
        "additionalProperties": False,
    }
