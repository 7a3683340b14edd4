"""A field's protocol as a compiled graph, which does in one call what the field does operation by operation.

It is made at its first call, in seconds, and again for another shape, dtype or device; a second batch size is compiled
for any. Where that fails, for want of a compiler or because the network cannot be one graph, a warning says so once and
the field is called as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fmkit.shapes import batch_time, time_dtype


class CompiledProtocol:
    """`(*times, x, cond)` to the answer of a field's method, times being numbers or tensors.

    Args:
        method: the bound method of a field, as `field.velocity`.
    """

    def __init__(self, method: Callable[..., Any]) -> None:
        self.method, self.failed = method, False
        self._graph = torch.compile(self._answer, fullgraph=True)

    def __call__(self, *arguments: Any) -> Any:
        if self.failed:
            return self._answer(*arguments)
        *times, x, cond = arguments
        at = [t if isinstance(t, Tensor) else torch.tensor(t, dtype=time_dtype(x.device)) for t in times]
        try:
            return self._graph(*at, x, cond)
        except Exception as error:  # whatever a compiler raises
            answer = self._answer(*arguments)  # a mistake in the call is none of the compiler's: it is raised here
            self.failed = True
            owner = getattr(self.method, "__self__", self.method)
            warn_of(f"{type(owner).__name__}.{self.method.__name__}", error, "is called as it is")
            return answer

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is of a copied field, and compiled anew."""
        return CompiledProtocol, (self.method,)

    def _answer(self, *arguments: Any) -> Any:
        *times, x, cond = arguments
        return self.method(*(batch_time(t, x) for t in times), x, cond)


def warn_of(what: str, reason: Exception | str, then: str, stacklevel: int = 2) -> None:
    """Say in one line what cannot be compiled, why, and what happens instead."""
    if isinstance(reason, Exception):
        said = str(reason).strip().splitlines() or [""]
        reason = f"{type(reason).__name__}: {said[0]}"
    warnings.warn(f"{what} cannot be compiled ({reason}) and {then}", stacklevel=stacklevel + 1)
