"""AdamW at the cost of its arithmetic.

torch's `step` asks at each step which tensors there are, of what device and precision, and opens a record for its
profiler: on a small network that takes three times as long as the fused kernel itself. Here the tensors are listed
once. Clipping is a division that the kernel does as it reads a gradient.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class _Listed:
    """A parameter group, and its state."""

    group: dict[str, Any]
    parameters: list[Tensor]
    averages: list[Tensor]
    squares: list[Tensor]
    steps: list[Tensor]


class FusedAdamW(torch.optim.AdamW):
    """torch's AdamW, its state and its `step`, and an `update` that takes the same step with less around it.

    Args:
        groups: parameter groups, as torch's AdamW takes them.
        lr: the learning rate.
        betas: decays of the two averages.
    """

    def __init__(self, groups: list[dict[str, Any]], lr: float, betas: tuple[float, float]) -> None:
        device = groups[0]["params"][0].device
        super().__init__(groups, lr=lr, betas=betas, fused=device.type in ("cpu", "cuda"))
        self._listed: list[_Listed] | None = None

    @torch.no_grad()
    def norm(self, add: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """The norm of all gradients together.

        `torch.nn.utils.clip_grad_norm_` spends two thirds of its time on sorting gradients by device and precision;
        here there is one of each.

        Args:
            add: sums the squared norm over processes that hold parts of the weights.
        """
        gradients = self._gradients()
        if not gradients:
            return torch.zeros(())
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        return norm if add is None else add(norm.square()).sqrt()

    @torch.no_grad()
    def update(self, clip: float | None = None, norm: Tensor | None = None) -> None:
        """One step with the gradients there are, scaled down first to a norm of `clip` if `norm`, theirs, is greater.

        The first step is torch's own, which makes the state; so is one in which a parameter has no gradient.
        """
        excess = None if clip is None else excess_of(self.norm() if norm is None else norm, clip)
        gradients = self._gradients()
        lean = self._listed is not None and len(gradients) == sum(len(g["params"]) for g in self.param_groups)
        if excess is not None and not (lean and excess.dtype == torch.float32):  # the kernel takes no other
            torch._foreach_div_(gradients, excess)
            excess = None
        if not lean:
            self.step()
            self._listed = self._list()
            return
        for listed in self._listed or ():
            torch._foreach_add_(listed.steps, 1)
            beta1, beta2 = listed.group["betas"]
            torch._fused_adamw_(
                listed.parameters,
                [p.grad for p in listed.parameters if p.grad is not None],  # none is None here
                listed.averages,
                listed.squares,
                [],
                listed.steps,
                lr=listed.group["lr"],
                beta1=beta1,
                beta2=beta2,
                weight_decay=listed.group["weight_decay"],
                eps=listed.group["eps"],
                amsgrad=False,
                maximize=False,
                grad_scale=excess,
                found_inf=None,
            )

    def _gradients(self) -> list[Tensor]:
        return [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]

    def _list(self) -> list[_Listed] | None:
        """The groups with their state; None where the fused kernel does not fit, or a parameter has no state yet."""
        found = []
        for group in self.param_groups:
            parameters = group["params"]
            kinds = {(p.device, p.dtype, p.layout) for p in parameters}
            if not group["fused"] or len(kinds) > 1 or any(p not in self.state for p in parameters):
                return None
            states = [self.state[p] for p in parameters]
            lists = ([s[key] for s in states] for key in ("exp_avg", "exp_avg_sq", "step"))
            found.append(_Listed(group, parameters, *lists))
        return found


def excess_of(norm: Tensor, largest: float) -> Tensor:
    """What to divide gradients by: 1, or how many times their norm is greater; the arithmetic of torch's clipping."""
    return ((norm + 1e-6) / largest).clamp_(min=1.0)
