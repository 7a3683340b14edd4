"""The command: measure on whatever device is here, write the rows and the record, and from these the page."""

from benchmarks.command import Benchmark
from benchmarks.images.page import page
from benchmarks.images.sections import SECTIONS

BENCHMARK = Benchmark(
    name="images",
    description="Images per second of training and sampling, beside torchcfm's CIFAR-10 script.",
    sections=SECTIONS,
    page=page,
    repeats=7,
    quick=2,
)
main = BENCHMARK.main

if __name__ == "__main__":
    main()
