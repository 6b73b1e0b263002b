"""Streams by name: which data arrive in which order, and the network and optimizer that a run has by default.

A stream of your own joins by one line; its function gets the settings, with nothing left None but `data`:

    register_benchmark(Benchmark("fashion-pairs", "Fashion-MNIST, 5 experiences of 2 classes, a head each",
                                 partial(split_stream, "fashion"), experiences=5, model="mlp-3x128", scenario="task"))

`online(benchmark)` makes one of which each sample is seen once, a few at a time.
"""

from benchmarks.streams.benchmark import (
    BENCHMARKS,
    SCENARIOS,
    Benchmark,
    StreamSettings,
    StreamShape,
    get_benchmark,
    register_benchmark,
    stream_shape,
)
from benchmarks.streams.builders import make_stream
from benchmarks.streams.catalogue import CATALOGUE
from benchmarks.streams.corrupted import corrupted_stream
from benchmarks.streams.online import mini_experiences, online
from benchmarks.streams.repeats import permuted_stream, random_label_stream, warm_start_stream
from benchmarks.streams.splits import alternating_stream, incremental_stream, split_stream

__all__ = [
    "BENCHMARKS",
    "SCENARIOS",
    "Benchmark",
    "StreamSettings",
    "StreamShape",
    "alternating_stream",
    "corrupted_stream",
    "get_benchmark",
    "incremental_stream",
    "make_stream",
    "mini_experiences",
    "online",
    "permuted_stream",
    "random_label_stream",
    "register_benchmark",
    "split_stream",
    "stream_shape",
    "warm_start_stream",
]

for _benchmark in CATALOGUE:
    register_benchmark(_benchmark)
