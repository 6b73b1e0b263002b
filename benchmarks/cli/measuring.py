"""The commands that answer a question of their own: `study` and `cost`."""

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.cli.arguments import add_computing, computing, count, device
from plasticity.errors import UserError


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
        "--strategies", default="", metavar="A,B", help="of long-runs (default: a few of different kinds)"
    )
    cost.add_argument("--experiences", type=count, metavar="N", help="of a run of long-runs (default: 2000)")
    add_computing(cost)
    cost.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON, too")


def _study(arguments: argparse.Namespace) -> None:
    from benchmarks.studies import Asked, get_study, run_study

    study = get_study(arguments.name)
    seeds = arguments.seeds or (study.full_seeds if arguments.full else study.seeds)
    asked = Asked(seeds, arguments.full, arguments.data, device(arguments.device))
    run_study(study, asked, arguments.out, arguments.jobs)
    print((arguments.out / "study.txt").read_text(encoding="utf-8"), end="")
    print(f"written: {arguments.out / 'study'}.txt, .csv and .json")


def _cost(arguments: argparse.Namespace) -> None:
    from benchmarks.cost import measure
    from benchmarks.cost.table import content, text
    from benchmarks.settings import environment

    sections = [section for section in arguments.sections.split(",") if section]
    asked = computing(arguments)
    strategies = [name for name in arguments.strategies.split(",") if name]
    where, long = device(arguments.device), (strategies, arguments.experiences)
    lines = list(measure(sections, where, arguments.rounds, arguments.threads, asked, *long))
    print(text(lines))
    if arguments.output is not None:
        words = f"--sections {arguments.sections} --rounds {arguments.rounds} --device {arguments.device}"
        words += f" --threads {arguments.threads}"
        words += f" --strategies {arguments.strategies}" if strategies else ""
        words += f" --experiences {arguments.experiences}" if arguments.experiences else ""
        command = " ".join([f"python -m benchmarks cost {words}", *asked.words()])
        found = content(lines, {**environment(arguments.device), **asked.environment(arguments.device)}, command)
        try:
            arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {arguments.output}: {error.strerror}") from None
