"""What everything costs, as ratios of interleaved runs: `python -m benchmarks cost`."""

from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.computing import Computing
from benchmarks.cost.table import Line
from benchmarks.runner import import_modules
from plasticity.errors import UserError

SECTIONS = ("watching", "treating", "loading", "epoch", "processes")
LONG = "long-runs"
"""A section of its own, which takes an hour."""
OF_STRATEGIES, OF_NETWORKS = ("treating", LONG), ("watching", "treating")
"""Sections that are about several strategies, or networks."""
ALL = ("all",)
"""Strategies that there are."""


@dataclass(frozen=True)
class CostSettings:
    """What to measure.

    Args:
        sections: Of `SECTIONS`, or `LONG`.
        rounds: Interleaved rounds; for the many methods ("treating") a third of them, for whole runs ("processes") a
            tenth.
        device: Where networks are trained.
        threads: CPU threads.
        strategies: Those of the sections that are about strategies, or "all" alone; none: all for treating, and for
            the long runs a few of different kinds.
        networks: Those of the sections that are about networks, by their names in `benchmarks.models`; none: all.
        experiences: Of a long run; None: 2,000.
        modules: Of the user, which register strategies.
        computing: How networks compute.
    """

    sections: tuple[str, ...] = SECTIONS
    rounds: int = 30
    device: str = "cpu"
    threads: int = 1
    strategies: tuple[str, ...] = ()
    networks: tuple[str, ...] = ()
    experiences: int | None = None
    modules: tuple[str, ...] = ()
    computing: Computing = Computing()

    def words(self) -> list[str]:
        """Return the words of the command line that ask for this."""
        found = ["--sections", ",".join(self.sections), "--rounds", str(self.rounds)]
        found += ["--device", self.device, "--threads", str(self.threads)]
        for option, names in (("--strategies", self.strategies), ("--networks", self.networks)):
            found += [option, ",".join(names)] if names else []
        found += ["--experiences", str(self.experiences)] if self.experiences else []
        found += [word for module in self.modules for word in ("--import", module)]
        return [*found, *self.computing.words()]

    def check(self) -> None:
        """Import the user's modules, and see that this can be measured, before anything is.

        Raises:
            UserError: If a module cannot be imported, a section, strategy or network is unknown, no section is named,
                or none that something is asked of, or the device cannot compute so.
        """
        if not self.sections:
            raise UserError("--sections names none")
        for section in self.sections:
            if section not in (*SECTIONS, LONG):
                raise UserError(f"unknown section {section!r}: there are {', '.join((*SECTIONS, LONG))}")
        for option, given, sections in (
            ("--strategies", self.strategies, OF_STRATEGIES),
            ("--networks", self.networks, OF_NETWORKS),
            ("--experiences", self.experiences, (LONG,)),
        ):
            if given and not set(sections) & set(self.sections):
                raise UserError(f"{option} is for {' and '.join(sections)}, which --sections does not name")
        self.computing.check(self.device)
        import_modules(list(self.modules))
        from torch import nn

        from benchmarks.cost.cases import CASES
        from strategies import Context, build_plugins, choose_optimizer

        for strategy in () if self.strategies == ALL else self.strategies:
            build_plugins(strategy, Context(nn.Identity, 0, 1, 1, 2))
            choose_optimizer(strategy, list(nn.Linear(1, 1).parameters()), "adam", 1e-3)
        known = [case.model for case in CASES]
        for network in self.networks:
            if network not in known:
                raise UserError(f"unknown network {network!r}: costs are measured on {', '.join(known)}")


def measure(settings: CostSettings) -> Iterator[Line]:
    """Measure costs.

    Args:
        settings: Of what, and how.

    Yields:
        Figures, as soon as they are known.

    Raises:
        UserError: As from `CostSettings.check`; or if a network does not admit a strategy that was asked for by name.
    """
    settings.check()
    import torch

    from benchmarks.cost import epoch, loading, long_runs, processes, treating, watching
    from benchmarks.cost.cases import of_networks
    from strategies import STRATEGIES

    torch.set_num_threads(settings.threads)
    where, rounds, computing = torch.device(settings.device), settings.rounds, settings.computing
    names, networks = settings.strategies, settings.networks
    some = None if names in ((), ALL) else names
    if "watching" in settings.sections:
        yield from watching.measure(where, rounds, of_networks(watching.CASES, networks), computing=computing)
    if "treating" in settings.sections:
        cases = of_networks(treating.CASES, networks)
        yield from treating.measure(where, max(1, rounds // 3), cases, some, computing=computing)
    if "loading" in settings.sections:
        yield from loading.measure(where, rounds, computing=computing)
    if "epoch" in settings.sections:
        yield from epoch.measure(where, rounds, computing=computing)
    if "processes" in settings.sections:
        yield from processes.measure(max(1, rounds // 10), device=settings.device, computing=computing)
    if LONG in settings.sections:
        names = tuple(STRATEGIES) if names == ALL else names or long_runs.STRATEGIES
        experiences = settings.experiences or long_runs.EXPERIENCES
        asked = long_runs.Asked(names, experiences, modules=settings.modules)
        yield from long_runs.measure(asked, settings.device, settings.threads, computing)
