"""The couplings that leave the order alone: independent draws, and pairs that the user gave."""

from __future__ import annotations

import torch
from torch import Tensor

from fmkit.couplings.base import Coupling, check_batches


class Independent(Coupling):
    """Row k of x0 meets row k of x1."""

    @property
    def independent(self) -> bool:
        return True

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None) -> tuple[Tensor, Tensor]:
        check_batches(x0, x1, cond0, cond1, generator)
        rows = torch.arange(len(x1), device=x1.device)
        return rows, rows


class Paired(Coupling):
    """Row k of x0 meets row k of x1 because the user's data says so: x0 and x1 are not independent."""

    def pair(self, x0, x1, cond0=None, cond1=None, *, generator=None) -> tuple[Tensor, Tensor]:
        return Independent().pair(x0, x1, cond0, cond1, generator=generator)
