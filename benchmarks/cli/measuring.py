"""The commands that answer a question of their own: `study` and `cost`."""

import argparse
import json
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.cli.arguments import add_computing, add_modules, computing, count, device, listed, path
from benchmarks.writing import check_writable, write_whole

if TYPE_CHECKING:  # takes seconds
    from benchmarks.cost import CostSettings
    from benchmarks.cost.table import Line

CLEAR = "\r\x1b[K"
"""Takes away what stands in the terminal's line."""


def add_study(commands: Any) -> None:
    """Add the command `study`."""
    command = commands.add_parser(
        "study", help="repeat a study of the methods’ sources: its runs, a table and a finding"
    )
    command.set_defaults(execute=_study)
    command.add_argument("name", metavar="NAME", help="demon-pruning, dying-units, width-depth or hyper-hypo")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for its runs and its table")
    command.add_argument("--data", type=Path, metavar="DIR", help="folder of the data (default: $PLASTICITY_DATA)")
    command.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:1, mps … (default: cpu)")
    command.add_argument("--seeds", type=count, metavar="N", help="run seeds 0 to N-1 (default: the study’s own)")
    command.add_argument("--jobs", type=count, default=1, metavar="N", help="runs at a time (default: 1)")
    command.add_argument("--full", action="store_true", help="the full size, for hours, in place of minutes")


def add_cost(commands: Any) -> None:
    """Add the command `cost`."""
    cost = commands.add_parser("cost", help="measure what watching, treating and loading cost on this machine")
    cost.set_defaults(execute=_cost)
    cost.add_argument(
        "--sections",
        default="watching,treating,loading,epoch,processes",
        metavar="A,B",
        help="default: all but long-runs",
    )
    cost.add_argument("--rounds", type=count, default=30, metavar="N", help="interleaved rounds (default: 30)")
    cost.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, … (default: cpu)")
    cost.add_argument("--threads", type=count, default=1, metavar="N", help="CPU threads (default: 1)")
    cost.add_argument(
        "--strategies",
        default="",
        metavar="A,B",
        help="of treating and long-runs; + combines them; or all (default: all, and a few of different kinds)",
    )
    cost.add_argument("--networks", default="", metavar="A,B", help="of watching and treating (default: all)")
    cost.add_argument("--experiences", type=count, metavar="N", help="of a run of long-runs (default: 2000)")
    add_computing(cost)
    add_modules(cost)
    cost.add_argument("--output", type=path, metavar="FILE", help="write the figures as JSON, too, while they come")


def _study(arguments: argparse.Namespace) -> None:
    from benchmarks.studies import Asked, get_study, run_study

    study = get_study(arguments.name)
    seeds = arguments.seeds or (study.full_seeds if arguments.full else study.seeds)
    asked = Asked(seeds, arguments.full, arguments.data, device(arguments.device))
    run_study(study, asked, arguments.out, arguments.jobs)
    print((arguments.out / "study.txt").read_text(encoding="utf-8"), end="")
    print(f"written: {arguments.out / 'study'}.txt, .csv and .json")


def _cost(arguments: argparse.Namespace) -> None:
    from benchmarks.cost import CostSettings, measure
    from benchmarks.cost.table import rows
    from benchmarks.cost.timing import telling

    settings = CostSettings(
        sections=listed(arguments.sections),
        rounds=arguments.rounds,
        device=device(arguments.device),
        threads=arguments.threads,
        strategies=listed(arguments.strategies),
        networks=listed(arguments.networks),
        experiences=arguments.experiences,
        modules=tuple(arguments.modules),
        computing=computing(arguments),
    )
    lines = measure(settings)
    if arguments.output is not None:
        check_writable(arguments.output)
        lines = _kept(lines, arguments.output, settings)
    shown = sys.stderr.isatty()
    with telling(_tell) if shown else nullcontext():
        for row in rows(lines):
            if shown:
                print(CLEAR, end="", file=sys.stderr, flush=True)
            print(row, flush=True)


def _kept(lines: "Iterator[Line]", output: Path, settings: "CostSettings") -> "Iterator[Line]":
    """Pass figures on; the file has them as soon as they are known, for some take hours."""
    from benchmarks.cost.table import content
    from benchmarks.settings import environment

    where = {**environment(settings.device), **settings.computing.environment(settings.device)}
    command, found = " ".join(["python -m benchmarks cost", *settings.words()]), []
    for line in lines:
        found.append(line)
        write_whole(output, json.dumps(content(found, where, command), indent=1) + "\n")
        yield line


def _tell(name: str, number: int, rounds: int) -> None:
    # No bars that move by themselves: their thread would be timed, too.
    print(f"{CLEAR}round {number} of {rounds}: {name}", end="", file=sys.stderr, flush=True)
