"""A limit of memory, for what must refuse before it takes any."""

import contextlib
import resource
from pathlib import Path


@contextlib.contextmanager
def little_memory(more):
    """So many bytes more than are taken now; beyond them an allocation fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
