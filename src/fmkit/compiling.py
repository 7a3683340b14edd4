"""A field's protocol as a compiled graph, which does in one call what the field does operation by operation.

It is made at its first call, in seconds, and again for another shape, dtype or device; a second batch size is compiled
for any. Where that fails, for want of a compiler or because the network cannot be one graph, a warning says so once and
the field is called as it is.

On a GPU the graph may also be recorded and replayed (CUDA graphs), which takes its kernels off the processor's hands: a
small field is evaluated as fast as the GPU can, not as fast as Python can ask for it. torch's recordings read weights
where they lie, so weights that change in place are those of now, and are made again for weights that lie elsewhere. A
replay writes its answer where the one before lies; solvers keep slopes, so each answer is copied from there.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from fmkit.errors import ArgumentError
from fmkit.shapes import batch_time, time_dtype

# Not, as a compiled graph, or as one that is recorded and replayed.
Compile = bool | Literal["graphs"]


def recorded(compile: Compile, device: torch.device) -> bool:
    """Whether to record CUDA graphs; where they are asked for and there is no GPU for them, a warning says so."""
    if isinstance(compile, bool):
        return False
    if compile != "graphs":
        raise ArgumentError(f"compile is {compile!r}, expected True, False or 'graphs'")
    if device.type != "cuda":
        warnings.warn(
            f"CUDA graphs need a GPU, and the field is on {device}: it is compiled without them", stacklevel=3
        )
        return False
    return True


class CompiledProtocol:
    """`(*times, x, cond)` to the answer of a field's method, times being numbers or tensors.

    Args:
        method: the bound method of a field, as `field.velocity`.
        graphs: whether to record and replay it, on a GPU.
    """

    def __init__(self, method: Callable[..., Any], graphs: bool = False) -> None:
        self.method, self.graphs, self.failed = method, graphs, False
        self._graph = torch.compile(self._answer, fullgraph=True, mode="reduce-overhead" if graphs else None)

    def __call__(self, *arguments: Any) -> Any:
        if self.failed:
            return self._answer(*arguments)
        *times, x, cond = arguments
        # Numbers are written where x is: a GPU would wait for one that it has to fetch, and cannot record that.
        place: dict[str, Any] = {"dtype": time_dtype(x.device), "device": x.device}
        at = [t if isinstance(t, Tensor) else torch.full((), t, **place) for t in times]
        try:
            if not self.graphs:
                return self._graph(*at, x, cond)
            torch.compiler.cudagraph_mark_step_begin()
            return _copied(self._graph(*at, x, cond))
        except Exception as error:  # whatever a compiler raises
            answer = self._answer(*arguments)  # a mistake in the call is none of the compiler's: it is raised here
            self.failed = True
            owner = getattr(self.method, "__self__", self.method)
            warn_of(f"{type(owner).__name__}.{self.method.__name__}", error, "is called as it is")
            return answer

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy is of a copied field, and compiled anew."""
        return CompiledProtocol, (self.method, self.graphs)

    def _answer(self, *arguments: Any) -> Any:
        *times, x, cond = arguments
        return self.method(*(batch_time(t, x) for t in times), x, cond)


def _copied(answer: Any) -> Any:
    """A tensor, or a named tuple of tensors, in memory of its own."""
    return answer.clone() if isinstance(answer, Tensor) else type(answer)(*(part.clone() for part in answer))


def warn_of(what: str, reason: Exception | str, then: str, stacklevel: int = 2) -> None:
    """Say in one line what cannot be compiled, why, and what happens instead."""
    if isinstance(reason, Exception):
        said = str(reason).strip().splitlines() or [""]
        reason = f"{type(reason).__name__}: {said[0]}"
    warnings.warn(f"{what} cannot be compiled ({reason}) and {then}", stacklevel=stacklevel + 1)
