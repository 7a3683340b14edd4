"""`python -m fmkit` is the command `fmkit`."""

from fmkit.cli import main

if __name__ == "__main__":
    main()
