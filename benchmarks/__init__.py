"""Benchmarks of fmkit: each a command that writes its own page of the documentation (see README.md)."""
