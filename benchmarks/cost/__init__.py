"""What everything costs, as ratios of interleaved runs: `python -m benchmarks cost`."""

from collections.abc import Iterator, Sequence

from benchmarks.cost.table import Line
from plasticity.errors import UserError

SECTIONS = ("watching", "treating", "loading", "processes")


def measure(sections: Sequence[str], device: str, rounds: int, threads: int = 1) -> Iterator[Line]:
    """Measure costs.

    Args:
        sections: Of `SECTIONS`.
        device: Where networks are trained.
        rounds: Interleaved rounds; for the many methods ("treating") a third of them, for whole runs ("processes") a
            tenth.
        threads: CPU threads.

    Raises:
        UserError: If a section is unknown.
    """
    unknown = [section for section in sections if section not in SECTIONS]
    if unknown:
        raise UserError(f"unknown section {unknown[0]!r}: there are {', '.join(SECTIONS)}")
    import torch

    from benchmarks.cost import loading, processes, treating, watching

    torch.set_num_threads(threads)
    where = torch.device(device)
    if "watching" in sections:
        yield from watching.measure(where, rounds)
    if "treating" in sections:
        yield from treating.measure(where, max(1, rounds // 3))
    if "loading" in sections:
        yield from loading.measure(where, rounds)
    if "processes" in sections:
        yield from processes.measure(max(1, rounds // 10))
