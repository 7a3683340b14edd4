"""Images: how fast networks are trained and sampled from, and how much of the device that takes.

    networks (sizes, arithmetic) -> loops (fmkit's trainer, torchcfm's script, sampling) -> sections -> page

The command is `python -m benchmarks.images`; the peers' environment, rows and contests are those of `benchmarks.peers`.
"""
