"""Online streams: an experience is shown a few samples at a time, each of them once."""

from dataclasses import replace
from typing import Any

from benchmarks.streams.benchmark import Benchmark
from benchmarks.streams.builders import derived_seed


def online(benchmark: Benchmark, samples: int = 10) -> Benchmark:
    """Return a benchmark whose experiences are shown a few samples at a time.

    Accuracies and units are measured after each whole experience, as ever.

    Args:
        benchmark: The benchmark as it is.
        samples: How many are shown at a time; they are one mini-batch, unless the batch size is smaller.
    """
    return replace(
        benchmark,
        name=f"online-{benchmark.name}",
        summary=f"{benchmark.name} online: {samples} samples at a time, each once",
        online=samples,
        batch_size=samples,
        epochs=1,
        source=f"{benchmark.source}; mini-experiences by Avalanche's `split_online_stream`".lstrip("; "),
    )


def mini_experiences(experience: Any, samples: int, seed: int) -> list[Any]:
    """Split an experience of an Avalanche stream into small ones, in an order drawn from the seed.

    Each mini-experience tells whether it is the first of its experience and how many there are, and has the number,
    the task label and the classes of the whole experience, which Avalanche leaves out: what a plugin reports, and the
    heads that a network grows, then belong to the experience.

    Args:
        experience: Of a benchmark of ours.
        samples: How many each has; the last one may have fewer.
        seed: Decides, with the number of the experience, the order of the samples.
    """
    from avalanche.benchmarks import split_online_stream

    order = derived_seed(seed, experience.current_experience)
    parts = list(split_online_stream([experience], samples, access_task_boundaries=True, seed=order))
    for part in parts:
        part.current_experience = experience.current_experience
        part.origin_stream = experience.origin_stream
        for name in (
            "task_label",
            "task_labels",
            "classes_in_this_experience",
            "previous_classes",
            "classes_seen_so_far",
            "future_classes",
        ):
            setattr(part, name, getattr(experience, name))
    # Avalanche marks the last one only where it has fewer samples than the others.
    parts[-1].is_last_subexp = True
    return parts
