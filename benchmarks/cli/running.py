"""The commands that train: `run` and `tune`."""

import argparse
import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from benchmarks.cli.arguments import (
    add_computing,
    add_modules,
    computing,
    count,
    device,
    listed,
    minutes,
    natural,
    path,
    seeds,
)
from benchmarks.runner import CHECKPOINT_MINUTES, import_modules, run_all
from benchmarks.settings import RunSettings
from plasticity.errors import UserError


def add_run(commands: Any) -> None:
    """Add the command `run`."""
    run = commands.add_parser("run", help="train strategies on a benchmark; finished runs are not run again")
    run.set_defaults(execute=_run)
    run.add_argument(
        "--config", metavar="FILE", help="a YAML file with what follows; the command line has the last say"
    )
    run.add_argument("--seeds", type=seeds, required=True, metavar="N", help="run seeds 0 to N-1; or FIRST-LAST")
    run.add_argument("--tuned", type=path, metavar="FILE", help="what `tune` wrote: run the best configurations")
    run.add_argument("--report", type=path, metavar="FILE", help="an HTML page that follows the runs")
    _add_arguments(run)


def add_tune(commands: Any) -> None:
    """Add the command `tune`."""
    tune = commands.add_parser("tune", help="try every method's configurations on seeds that `run` does not use")
    tune.set_defaults(execute=_tune)
    tune.add_argument("--seeds", type=count, default=1, metavar="N", help="how many tuning seeds (default: 1)")
    _add_arguments(tune)


def _add_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("benchmark", metavar="BENCHMARK", help="a name that `list` shows")
    command.add_argument(
        "--strategies", required=True, metavar="A,B,C", help="names that `list` shows; + combines them; or all"
    )
    command.add_argument("--out", type=path, required=True, metavar="DIR", help="folder for results")
    command.add_argument("--data", type=path, metavar="DIR", help="folder of the data (default: $PLASTICITY_DATA)")
    command.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:1, mps … (default: cpu)")
    add_computing(command)
    command.add_argument("--experiences", type=count, metavar="N", help="length of the stream")
    command.add_argument("--epochs", type=count, metavar="N", help="passes over each experience")
    command.add_argument("--jobs", type=count, default=1, metavar="N", help="runs at a time (default: 1)")
    command.add_argument("--threads", type=count, default=1, metavar="N", help="CPU threads of each run (default: 1)")
    command.add_argument("--scenario", metavar="S", help="class, task or domain, where the benchmark has it")
    command.add_argument("--model", metavar="NAME", help="another network")
    command.add_argument("--batch-size", type=count, metavar="N", help="samples of new data in a mini-batch")
    command.add_argument("--optimizer", metavar="NAME", help="adam, adamw or sgd")
    command.add_argument("--learning-rate", type=float, metavar="X", help="step size of the optimizer")
    command.add_argument("--momentum", type=float, default=0.0, metavar="X", help="of sgd")
    command.add_argument("--weight-decay", type=float, default=0.0, metavar="X", help="of the optimizer")
    command.add_argument(
        "--evaluate", type=natural, metavar="N", help="test on N earlier experiences after each, and at the end on all"
    )
    command.add_argument("--measure", default="", metavar="A,B", help="also sample-plasticity, curvature; takes time")
    command.add_argument(
        "--checkpoint-minutes",
        type=minutes,
        default=CHECKPOINT_MINUTES,
        metavar="N",
        help="save a run after every experience, and within long ones every N minutes (default: "
        f"{CHECKPOINT_MINUTES:g}; 0: only after experiences)",
    )
    add_modules(command)


def expanded(words: list[str], options: Sequence[str]) -> list[str]:
    """Put the words of a `--config FILE` in front of the other options of `run`.

    Args:
        words: Of the command line.
        options: Long options of `run`, without dashes.

    Raises:
        UserError: If there is not one file, or it is not understood.
    """
    given = [index for index, word in enumerate(words) if word == "--config" or word.startswith("--config=")]
    if words[:1] != ["run"] or not given:
        return words
    index = given[0]
    name = words[index].partition("=")[2] if "=" in words[index] else "".join(words[index + 1 : index + 2])
    rest = words[1:index] + words[index + (1 if "=" in words[index] else 2) :]
    if not name or len(given) > 1:
        raise UserError("--config takes one file")
    from benchmarks.config import words as words_of

    return ["run", *words_of(Path(name), [o for o in options if o not in ("help", "config")]), *rest]


def _names(arguments: argparse.Namespace) -> list[str]:
    """Import the user's modules and return the strategies asked for."""
    import_modules(arguments.modules)
    from strategies import STRATEGIES, parse

    asked = listed(arguments.strategies)
    if not asked:
        raise UserError("--strategies names none")
    asked = tuple(STRATEGIES) if asked == ("all",) else asked
    for name in asked:
        parse(name)
    return list(asked)


def _runs(arguments: argparse.Namespace, names: list[str], chosen: range) -> list[RunSettings]:
    from benchmarks.settings import resolve

    where = device(arguments.device)
    return [
        resolve(
            arguments.benchmark,
            name,
            seed,
            experiences=arguments.experiences,
            scenario=arguments.scenario,
            model=arguments.model,
            optimizer=arguments.optimizer,
            learning_rate=arguments.learning_rate,
            momentum=arguments.momentum,
            weight_decay=arguments.weight_decay,
            batch_size=arguments.batch_size,
            epochs=arguments.epochs,
            device=where,
            threads=arguments.threads,
            evaluate=arguments.evaluate,
            computing=computing(arguments),
            measure=list(listed(arguments.measure)),
            data=arguments.data,
        )
        for name in names
        for seed in chosen
    ]


def _run(arguments: argparse.Namespace) -> None:
    from benchmarks.progress import Progress

    names = _names(arguments)
    if arguments.tuned is not None:
        from benchmarks.tuning import read_tuned, tuned_name

        best = read_tuned(arguments.tuned, arguments.benchmark)
        names = [tuned_name(name, best) for name in names]
    runs = _runs(arguments, names, arguments.seeds)
    with _reporting(arguments):
        done = run_all(runs, arguments.out, arguments.jobs, arguments.modules, Progress(), arguments.checkpoint_minutes)
    there = f", {len(runs) - done} were there already" if done < len(runs) else ""
    print(f"{done} runs done{there}; compare them with: python -m benchmarks compare {arguments.out}")


def _reporting(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    if arguments.report is None:
        return nullcontext()
    from benchmarks.comparison.watching import reporting

    return reporting(arguments.out, arguments.report)


def _tune(arguments: argparse.Namespace) -> None:
    from benchmarks.progress import Progress
    from benchmarks.tuning import FIRST_SEED, choose, configurations, lines

    tried = configurations(_names(arguments))
    names = list(dict.fromkeys(name for options in tried.values() for name in options))
    runs = _runs(arguments, names, range(FIRST_SEED, FIRST_SEED + arguments.seeds))
    run_all(runs, arguments.out, arguments.jobs, arguments.modules, Progress(), arguments.checkpoint_minutes)
    tuned = choose(tried, runs, arguments.out)
    path = arguments.out / "tuned.json"
    path.write_text(json.dumps(tuned, indent=1, allow_nan=False) + "\n")
    print(*lines(tuned), sep="\n")
    print(f"written: {path}; use it with: python -m benchmarks run {arguments.benchmark} --tuned {path} …")
