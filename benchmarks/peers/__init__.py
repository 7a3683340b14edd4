"""fmkit beside its peers, on the same work in the same run: `python -m benchmarks.peers`.

    packages (the peers) -> training, pairing, sampling, divergence, footprint -> results (rows, goals) -> page

Every section is a module with one function that yields rows. Contestants take turns (`contest`), so that what slows the
machine down slows all of them down, and what is concluded are ratios within a turn.
"""
