"""Taking turns: every contestant does its work once a turn, the first of them another one each time.

Work that is over sooner than `at_least` is done several times within a turn, and the turn counts their mean. A
contestant may return the seconds that count, where something of its work does not (setting up a run, compiling).
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

Work = Callable[[], Any]


def turns(
    contestants: Mapping[str, Work],
    repeats: int,
    *,
    at_least: float = 0.02,
    patience: float = math.inf,
    optional: Collection[str] = (),
) -> dict[str, tuple[float, ...]]:
    """Seconds of every contestant in every turn; an optional one that is too slow is left out.

    Args:
        contestants: the work of each, by name. A float that it returns is the time it took; else its whole call is
            timed.
        repeats: turns, after one that does not count.
        at_least: seconds that a contestant works in a turn, by repetition.
        patience: seconds that one call of an optional contestant may take, after the first.
        optional: contestants that may be left out.
    """
    number = {}
    for name, work in contestants.items():
        work()  # the first call of anything is slower: imports, caches, compilers
        if (taken := once(work)) <= patience or name not in optional:
            number[name] = max(1, math.ceil(at_least / max(taken, 1e-9)))
    names = list(number)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    for turn in range(repeats):
        for name in rotated(names, turn):
            each = [once(contestants[name]) for _ in range(number[name])]
            seconds[name].append(sum(each) / len(each))
    return {name: tuple(each) for name, each in seconds.items()}


def once(work: Work) -> float:
    """Seconds of one call, or those that it returns."""
    began = time.perf_counter()
    own = work()
    taken = time.perf_counter() - began
    return own if isinstance(own, float) else taken


def rotated(names: list[str], turn: int) -> Iterator[str]:
    """All names, beginning with another one at each turn."""
    start = turn % len(names)
    return iter(names[start:] + names[:start])
