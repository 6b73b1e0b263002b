"""The suite of L2 Init (Kumar, Marklund & Van Roy 2023): its sizes, steps, networks and numbers of tasks.

The source judges by the accuracy on each mini-batch before the step on it, averaged over all tasks, and tunes step
sizes for every method: with Adam, 1e-3 or 1e-4 were best for all of them. Runs here begin from 1e-3. Differences:
inputs are normalised by the mean and deviation of each channel; the first task is permuted, or has its labels mixed up,
like all others; and a pass over the images ends with the few that do not fill a mini-batch.
"""

from functools import partial

from benchmarks.streams.benchmark import Benchmark
from benchmarks.streams.repeats import permuted_stream, random_label_stream
from benchmarks.streams.splits import alternating_stream

SUITE = (
    Benchmark(
        name="l2-init-permuted-mnist",
        summary="L2 Init's suite: 500 permutations, 10,000 images of each, 625 steps (long; tested on 1,000 images)",
        stream=partial(permuted_stream, "mnist", samples=10_000, test_samples=1000),
        experiences=500,
        model="mlp-2x100",
        batch_size=16,
        epochs=1,
        scenario="domain",
        scenarios=("domain", "task"),
        source="Kumar et al. 2023 (L2 Init), permuted MNIST",
    ),
    Benchmark(
        name="l2-init-random-label-mnist",
        summary="L2 Init's suite: 50 times other labels for 1,200 images, 30,000 steps each (long)",
        stream=partial(random_label_stream, "mnist", samples=1200),
        experiences=50,
        model="mlp-2x100",
        batch_size=16,
        epochs=400,
        scenario="domain",
        scenarios=("domain", "task"),
        source="Kumar et al. 2023 (L2 Init), random label MNIST; tested on the training images",
    ),
    Benchmark(
        name="l2-init-random-label-cifar10",
        summary="L2 Init's suite: 50 times other labels for 1,200 images, 30,000 steps each (very long)",
        stream=partial(random_label_stream, "cifar10", samples=1200),
        experiences=50,
        model="l2-init-conv",
        batch_size=16,
        epochs=400,
        scenario="domain",
        scenarios=("domain", "task"),
        source="Kumar et al. 2023 (L2 Init), random label CIFAR; tested on the training images",
    ),
    Benchmark(
        name="l2-init-5+1-cifar",
        summary="L2 Init's suite: CIFAR-100, 30 tasks of 5 classes and of 1 in turn, 790 steps each, hard ones scored",
        stream=partial(alternating_stream, "cifar100", hard=5, easy=1),
        experiences=30,
        model="l2-init-conv",
        batch_size=32,
        epochs=10,
        scored_every=2,
        source="Kumar et al. 2023 (L2 Init), 5+1 CIFAR, which takes 780 steps a task",
    ),
)
