"""The command: measure, write the rows and the record, and from these the page."""

from benchmarks.command import Benchmark
from benchmarks.peers.page import page
from benchmarks.peers.sections import SECTIONS

BENCHMARK = Benchmark(
    name="peers",
    description="fmkit and its peers on the same work in the same run.",
    sections=SECTIONS,
    page=page,
    repeats=21,
    quick=2,
)
main = BENCHMARK.main

if __name__ == "__main__":
    main()
