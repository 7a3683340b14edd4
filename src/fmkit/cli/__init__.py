"""The command line. Commands are thin; everything heavy is imported inside them."""

from __future__ import annotations

import sys
import warnings

# Mistakes of the user end with 2, failures of the work with 1, an interruption with 130.
USER, WORK, INTERRUPTED = 2, 1, 130


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns nothing, but leaves with an exit code."""
    from fmkit.cli.app import app

    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in arguments
    arguments = [a for a in arguments if a != "--debug"]
    plain, warnings.formatwarning = warnings.formatwarning, _format
    try:
        code = app(arguments, standalone_mode=False) or 0
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        code = INTERRUPTED
    except Exception as error:
        if debug:
            raise
        code = _report(error)
    finally:
        warnings.formatwarning = plain
    sys.exit(code)


def _format(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """A warning in one line: where in fmkit it was raised says nothing to a user of commands."""
    return f"fmkit: warning: {' '.join(str(message).split())}\n"


def _report(error: Exception) -> int:
    """One line on standard error, and the exit code."""
    from fmkit.errors import FmkitError, SolverError, TrainingError

    if hasattr(error, "format_message"):  # a wrong option or argument, found by the command-line library
        return _say(error.format_message(), getattr(error, "exit_code", USER))
    if isinstance(error, SolverError | TrainingError):
        return _say(str(error), WORK)
    if isinstance(error, FmkitError):
        return _say(str(error), USER)
    if isinstance(error, OSError) and error.filename:
        return _say(f"cannot use {_short(str(error.filename))}: {error.strerror}", USER)
    if isinstance(error, MemoryError) or "allocate memory" in str(error) or "out of memory" in str(error):
        return _say("not enough memory for that; ask for fewer samples at once, or smaller batches", WORK)
    return _say(f"{type(error).__name__}: {error} (unexpected; --debug shows where)", WORK)


def _short(name: str) -> str:
    return name if len(name) <= 200 else f"{name[:100]}..."


def _say(message: str, code: int) -> int:
    print("fmkit: " + " ".join(message.split()), file=sys.stderr)
    return code
