"""What a part is: a torch module of a kind that remembers how it was made.

Everything configurable or stateful in fmkit is a part: paths, sources, couplings, fields, objectives,
time samplers, solvers, transforms, flows. A part's constructor arguments are recorded as they were given, so
saving a flow and showing a configuration are one recursion over nested parts, typed by the constructor's
annotations. The arguments are held against the same annotations: a part of the right kind, a number that is one.
Numbers that are learnt or fitted live in the part's `state_dict`, as in any torch module.

A new kind of part is a subclass of `Part` that names its entry-point `group`; a plugin may bring one.
"""

from __future__ import annotations

import abc
import inspect
from typing import Any, ClassVar, Self

import torch

from fmkit.arguments import check_arguments
from fmkit.errors import ArgumentError, FmkitError


class PartType(abc.ABCMeta):
    """What makes parts: their arguments are held against the constructor's annotations.

    A constructor refuses in its own words first; what it lets pass, or trips over, is looked at here.
    """

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        try:
            part = super().__call__(*args, **kwargs)
        except FmkitError:
            raise
        except Exception as error:
            _hold(cls, _bind(cls, args, kwargs), error)
            raise
        _hold(cls, part.arguments)
        return part

    @property
    def __signature__(cls) -> inspect.Signature:
        """The constructor's, for `help` and editors, which would take that of `__call__` above."""
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
        return signature.replace(parameters=list(signature.parameters.values())[1:])


class Part(torch.nn.Module, metaclass=PartType):
    """A configurable piece of fmkit.

    Attributes:
        group: the entry-point group of this kind of part, as `"fmkit.paths"`; set once, on the kind's base class.
        admits: what else may stand where a part of this kind is asked for; set beside the group.
        arguments: the constructor's arguments as they were given, by name (defaults are not in it).
    """

    group: ClassVar[str] = ""
    admits: ClassVar[type | None] = None
    arguments: dict[str, Any]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        part = super().__new__(cls)
        # torch.nn.Module.__setattr__ would register nested parts found here; a plain dict keeps them once only.
        object.__setattr__(part, "arguments", _bind(cls, args, kwargs))
        return part

    def extra_repr(self) -> str:
        shown = (f"{k}={v!r}" for k, v in self.arguments.items() if not isinstance(v, torch.nn.Module | torch.Tensor))
        return ", ".join(shown)


def parameters_of(cls: type) -> dict[str, inspect.Parameter]:
    """The constructor's named parameters, without `self`; annotations are evaluated where they can be."""
    if cls.__init__ is torch.nn.Module.__init__:  # type: ignore[misc]
        return {}
    try:
        signature = inspect.signature(cls.__init__, eval_str=True)  # type: ignore[misc]
    except NameError:  # a name that was imported for type checkers only: the argument goes unchecked
        signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p for p in list(signature.parameters.values())[1:] if p.kind in named}


def _hold(cls: type, arguments: dict[str, Any], cause: Exception | None = None) -> None:
    try:
        check_arguments(cls.__init__, arguments)  # type: ignore[misc]
    except ArgumentError as error:
        raise ArgumentError(f"{cls.__name__}: {error}") from cause


def _bind(cls: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(cls.__init__)  # type: ignore[misc]
    try:
        # Partial: copying and unpickling call __new__ without arguments and restore __dict__ afterwards.
        bound = signature.bind_partial(None, *args, **kwargs)
    except TypeError:
        return {}  # __init__ is called next with the same arguments, and says what is wrong with them
    arguments = dict(list(bound.arguments.items())[1:])
    for parameter in signature.parameters.values():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            arguments.update(arguments.pop(parameter.name, {}))
    return arguments
