"""Streams by name: which data arrive in which order, and the network and optimizer that a run has by default.

A stream of your own joins by one line; its function gets the settings, with nothing left None but `data`:

    register_benchmark(Benchmark("split-fashion", "Fashion-MNIST, 5 experiences of 2 classes",
                                 partial(split_stream, "fashion"), experiences=5, model="mlp-3x128"))
"""

from functools import partial

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
from benchmarks.streams.builders import make_stream, permuted_stream, split_stream

__all__ = [
    "BENCHMARKS",
    "SCENARIOS",
    "Benchmark",
    "StreamSettings",
    "StreamShape",
    "get_benchmark",
    "make_stream",
    "permuted_stream",
    "register_benchmark",
    "split_stream",
    "stream_shape",
]

for _benchmark in (
    Benchmark(
        name="permuted-digits",
        summary="scikit-learn's digits, 8x8, the pixels in another order in every experience (no download)",
        stream=partial(permuted_stream, "digits"),
        experiences=60,
        model="mlp-3x128",
        learning_rate=5e-3,
        scenario="domain",
        scenarios=("domain", "task"),
        source="after permuted MNIST (Goodfellow et al. 2014; Dohare et al. 2024), small enough for any machine",
    ),
    Benchmark(
        name="split-digits",
        summary="scikit-learn's digits, 8x8, 5 experiences of 2 classes (no download)",
        stream=partial(split_stream, "digits"),
        experiences=5,
        model="mlp-3x128",
        source="after split MNIST (Zenke et al. 2017)",
    ),
    Benchmark(
        name="split-cifar10",
        summary="CIFAR-10, 5 experiences of 2 classes",
        stream=partial(split_stream, "cifar10"),
        experiences=5,
        model="slim-resnet18",
        optimizer="sgd",
        learning_rate=0.03,
        source="network and plain SGD of Lopez-Paz & Ranzato 2017; step size and epochs chosen here",
    ),
    Benchmark(
        name="split-cifar100",
        summary="CIFAR-100, 10 experiences of 10 classes",
        stream=partial(split_stream, "cifar100"),
        experiences=10,
        model="slim-resnet18",
        optimizer="sgd",
        learning_rate=0.03,
        source="network and plain SGD of Lopez-Paz & Ranzato 2017; step size and epochs chosen here",
    ),
    Benchmark(
        name="cifar100-pairs",
        summary="CIFAR-100, 50 experiences of 2 classes, a head each: a network stops learning about half-way",
        stream=partial(split_stream, "cifar100", classes_each=2),
        experiences=50,
        model="pairs-conv",
        learning_rate=5e-3,
        epochs=10,
        scenario="task",
        source="after Continual ImageNet (Dohare et al. 2024), small enough for a CPU",
    ),
):
    register_benchmark(_benchmark)
