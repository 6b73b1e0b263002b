"""What everything costs, as ratios of interleaved runs: `python -m benchmarks cost`."""

from collections.abc import Iterator, Sequence

from benchmarks.computing import Computing
from benchmarks.cost.table import Line
from plasticity.errors import UserError

SECTIONS = ("watching", "treating", "loading", "epoch", "processes")
LONG = "long-runs"
"""A section of its own, which takes an hour."""


def measure(
    sections: Sequence[str],
    device: str,
    rounds: int,
    threads: int = 1,
    computing: Computing | None = None,
    strategies: Sequence[str] = (),
    experiences: int | None = None,
) -> Iterator[Line]:
    """Measure costs.

    Args:
        sections: Of `SECTIONS`, or `LONG`.
        device: Where networks are trained.
        rounds: Interleaved rounds; for the many methods ("treating") a third of them, for whole runs ("processes") a
            tenth.
        threads: CPU threads.
        computing: How networks compute; None: as by default.
        strategies: Of the long runs; none: a few of different kinds.
        experiences: Of a long run; None: 2,000.

    Raises:
        UserError: If a section is unknown, or the device cannot compute so.
    """
    unknown = [section for section in sections if section not in (*SECTIONS, LONG)]
    if unknown:
        raise UserError(f"unknown section {unknown[0]!r}: there are {', '.join((*SECTIONS, LONG))}")
    computing = computing or Computing()
    computing.check(device)
    import torch

    from benchmarks.cost import epoch, loading, long_runs, processes, treating, watching

    torch.set_num_threads(threads)
    where = torch.device(device)
    if "watching" in sections:
        yield from watching.measure(where, rounds, computing=computing)
    if "treating" in sections:
        yield from treating.measure(where, max(1, rounds // 3), computing=computing)
    if "loading" in sections:
        yield from loading.measure(where, rounds, computing=computing)
    if "epoch" in sections:
        yield from epoch.measure(where, rounds, computing=computing)
    if "processes" in sections:
        yield from processes.measure(max(1, rounds // 10), device=device, computing=computing)
    if LONG in sections:
        asked = long_runs.Asked(tuple(strategies) or long_runs.STRATEGIES, experiences or long_runs.EXPERIENCES)
        yield from long_runs.measure(asked, device, threads, computing)
