"""Random generators under watch: torch's, numpy's and Python's global ones, which no part may touch."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seeded(seed: int) -> torch.Generator:
    """A new generator."""
    return torch.Generator().manual_seed(seed)


class Globals:
    """The states of the global generators at the moment of making this."""

    def __init__(self) -> None:
        self.torch = torch.get_rng_state()
        self.numpy = np.random.get_state()  # noqa: NPY002 - the global state is what is watched
        self.python = random.getstate()

    def touched(self) -> list[str]:
        """Which of the generators have moved since."""
        now = Globals()
        moved = {
            "torch's global generator was touched": not torch.equal(now.torch, self.torch),
            "numpy's global generator was touched": repr(now.numpy) != repr(self.numpy)
            or not np.array_equal(now.numpy[1], self.numpy[1]),  # type: ignore[index]
            "Python's global generator was touched": now.python != self.python,
        }
        return [name for name, yes in moved.items() if yes]

    def restore(self) -> None:
        """Put them back."""
        torch.set_rng_state(self.torch)
        np.random.set_state(self.numpy)  # noqa: NPY002
        random.setstate(self.python)


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """Leave the global generators as they were."""
    before = Globals()
    try:
        yield
    finally:
        before.restore()


def stir(seed: int) -> None:
    """Put the global generators elsewhere: what follows them will differ."""
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    random.seed(seed)
