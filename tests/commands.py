"""fmkit's commands, in this process."""

import pytest

from fmkit.cli import main


def run(*words):
    """The exit code of a command."""
    with pytest.raises(SystemExit) as left:
        main([str(w) for w in words])
    return left.value.code
