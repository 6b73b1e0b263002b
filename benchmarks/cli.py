"""The command line: `python -m benchmarks list | run | tune | compare | publish | study | cost`."""

import argparse
import json
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from benchmarks.runner import RunError, import_modules, run_all
from plasticity.errors import UserError

if TYPE_CHECKING:
    from benchmarks.settings import RunSettings


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see {self.prog} --help)")


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, not {value}")
    return value


def _seeds(text: str) -> range:
    first, dash, last = text.partition("-")
    if not dash:
        return range(_count(text))
    if not (first.isdecimal() and last.isdecimal() and int(first) <= int(last)):
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number of seeds nor FIRST-LAST")
    return range(int(first), int(last) + 1)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    main = _Parser(prog="python -m benchmarks", description="Compare plasticity and forgetting on streams of tasks.")
    titles = "{list,run,tune,compare,publish,study,cost}"
    commands = main.add_subparsers(dest="command", required=True, metavar=titles, parser_class=_Parser)

    listing = commands.add_parser("list", help="show the benchmarks, strategies and models")
    run = commands.add_parser("run", help="train strategies on a benchmark; finished runs are not run again")
    run.add_argument(
        "--config", metavar="FILE", help="a YAML file with what follows; the command line has the last say"
    )
    run.add_argument("--seeds", type=_seeds, required=True, metavar="N", help="run seeds 0 to N-1; or FIRST-LAST")
    run.add_argument("--tuned", type=Path, metavar="FILE", help="what `tune` wrote: run the best configurations")
    run.add_argument("--report", type=Path, metavar="FILE", help="an HTML page that follows the runs")
    tune = commands.add_parser("tune", help="try every method's configurations on seeds that `run` does not use")
    tune.add_argument("--seeds", type=_count, default=1, metavar="N", help="how many tuning seeds (default: 1)")
    for command in (run, tune):
        _add_run_arguments(command)
    for command in (listing, run, tune):
        command.add_argument(
            "--import",
            dest="modules",
            action="append",
            default=[],
            metavar="MODULE",
            help="a module of yours that registers models, streams or strategies; may be repeated",
        )
    compare = commands.add_parser("compare", help="compare finished runs")
    compare.add_argument("directory", type=Path, metavar="DIR", help="the --out folder of `run`")
    compare.add_argument("--format", default="table", metavar="F", help="table, csv, json or html (default: table)")
    compare.add_argument("--output", type=Path, metavar="FILE", help="write to a file instead of printing")
    compare.add_argument(
        "--watch", action="store_true", help="write the page anew while runs are going on, until interrupted"
    )
    publish = commands.add_parser("publish", help="write the table of finished runs to keep, with how it was made")
    publish.add_argument("directory", type=Path, metavar="DIR", help="the --out folder of `run`, with one benchmark")
    publish.add_argument("--output", type=Path, required=True, metavar="FILE", help="NAME.json")
    publish.add_argument("--document", type=Path, metavar="FILE", help="Markdown with a place <!-- table NAME -->")
    publish.add_argument(
        "--command",
        dest="lines",
        action="append",
        required=True,
        metavar="C",
        help="that made the runs; may be repeated",
    )
    study = commands.add_parser("study", help="repeat a study of the methods’ sources: its runs, a table and a finding")
    _add_study_arguments(study)
    cost = commands.add_parser("cost", help="measure what watching, treating and loading cost on this machine")
    _add_cost_arguments(cost)
    return main


def _add_cost_arguments(cost: argparse.ArgumentParser) -> None:
    cost.add_argument("--sections", default="watching,treating,loading,processes", metavar="A,B", help="default: all")
    cost.add_argument("--rounds", type=_count, default=30, metavar="N", help="interleaved rounds (default: 30)")
    cost.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, … (default: cpu)")
    cost.add_argument("--threads", type=_count, default=1, metavar="N", help="CPU threads (default: 1)")
    cost.add_argument("--output", type=Path, metavar="FILE", help="write the figures as JSON, too")


def _add_study_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("name", metavar="NAME", help="demon-pruning, dying-units, width-depth or hyper-hypo")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for its runs and its table")
    command.add_argument("--data", type=Path, metavar="DIR", help="folder of the data (default: $PLASTICITY_DATA)")
    command.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:1, mps … (default: cpu)")
    command.add_argument("--seeds", type=_count, metavar="N", help="run seeds 0 to N-1 (default: the study’s own)")
    command.add_argument("--jobs", type=_count, default=1, metavar="N", help="runs at a time (default: 1)")
    command.add_argument("--full", action="store_true", help="the full size, for hours, in place of minutes")


def _add_run_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument("benchmark", metavar="BENCHMARK", help="a name that `list` shows")
    command.add_argument(
        "--strategies", required=True, metavar="A,B,C", help="names that `list` shows; + combines them; or all"
    )
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for results")
    command.add_argument("--data", type=Path, metavar="DIR", help="folder of the data (default: $PLASTICITY_DATA)")
    command.add_argument("--device", default="cpu", metavar="D", help="cpu, cuda, cuda:1, mps … (default: cpu)")
    command.add_argument("--experiences", type=_count, metavar="N", help="length of the stream")
    command.add_argument("--epochs", type=_count, metavar="N", help="passes over each experience")
    command.add_argument("--jobs", type=_count, default=1, metavar="N", help="runs at a time (default: 1)")
    command.add_argument("--threads", type=_count, default=1, metavar="N", help="CPU threads of each run (default: 1)")
    command.add_argument("--scenario", metavar="S", help="class, task or domain, where the benchmark has it")
    command.add_argument("--model", metavar="NAME", help="another network")
    command.add_argument("--batch-size", type=_count, metavar="N", help="samples of new data in a mini-batch")
    command.add_argument("--optimizer", metavar="NAME", help="adam, adamw or sgd")
    command.add_argument("--learning-rate", type=float, metavar="X", help="step size of the optimizer")
    command.add_argument("--momentum", type=float, default=0.0, metavar="X", help="of sgd")
    command.add_argument("--weight-decay", type=float, default=0.0, metavar="X", help="of the optimizer")


def _expanded(words: list[str]) -> list[str]:
    """Put the words of a `--config FILE` in front of the other options."""
    given = [index for index, word in enumerate(words) if word == "--config" or word.startswith("--config=")]
    if words[:1] != ["run"] or not given:
        return words
    index = given[0]
    name = words[index].partition("=")[2] if "=" in words[index] else "".join(words[index + 1 : index + 2])
    rest = words[1:index] + words[index + (1 if "=" in words[index] else 2) :]
    if not name or len(given) > 1:
        raise UserError("--config takes one file")
    from benchmarks.config import words as words_of

    choices = next(a.choices for a in parser()._actions if isinstance(a, argparse._SubParsersAction))
    options = [option[2:] for option in choices["run"]._option_string_actions if option.startswith("--")]
    return ["run", *words_of(Path(name), [o for o in options if o not in ("help", "config")]), *rest]


def _list(arguments: argparse.Namespace) -> None:
    from benchmarks.models import MODELS
    from benchmarks.streams import BENCHMARKS
    from strategies import STRATEGIES

    import_modules(arguments.modules)
    benchmarks = {name: benchmark.summary for name, benchmark in BENCHMARKS.items()}
    strategies = {name: strategy.summary for name, strategy in STRATEGIES.items()}
    width = max(map(len, (*benchmarks, *strategies)))
    for title, entries in (
        ("benchmarks", benchmarks),
        ("strategies (combine with +; options as in redo:tau=0.1:every=200)", strategies),
    ):
        print(f"{title}:")
        for name, summary in entries.items():
            print(f"  {name.ljust(width)}  {summary}".rstrip())
        print()
    print(f"models: {', '.join(MODELS)}")


def _names(arguments: argparse.Namespace) -> list[str]:
    """Import the user's modules and return the strategies asked for."""
    import_modules(arguments.modules)
    from strategies import STRATEGIES, parse

    names = [name for name in arguments.strategies.split(",") if name]
    if names == ["all"]:
        names = list(STRATEGIES)
    if not names:
        raise UserError("--strategies names none")
    for name in names:
        parse(name)
    return list(dict.fromkeys(names))


def _runs(arguments: argparse.Namespace, names: list[str], seeds: range) -> "list[RunSettings]":
    from benchmarks.settings import resolve

    device = _device(arguments.device)
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
            device=device,
            threads=arguments.threads,
            data=arguments.data,
        )
        for name in names
        for seed in seeds
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
        done = run_all(runs, arguments.out, arguments.jobs, arguments.modules, Progress())
    there = f", {len(runs) - done} were there already" if done < len(runs) else ""
    print(f"{done} runs done{there}; compare them with: python -m benchmarks compare {arguments.out}")


def _reporting(arguments: argparse.Namespace) -> AbstractContextManager[None]:
    if arguments.report is None:
        return nullcontext()
    from benchmarks.comparison.watching import reporting

    return reporting(arguments.out, arguments.report)


def _tune(arguments: argparse.Namespace) -> None:
    from benchmarks.progress import Progress
    from benchmarks.tuning import FIRST_SEED, MEASURE, choose, configurations

    tried = configurations(_names(arguments))
    names = list(dict.fromkeys(name for options in tried.values() for name in options))
    runs = _runs(arguments, names, range(FIRST_SEED, FIRST_SEED + arguments.seeds))
    run_all(runs, arguments.out, arguments.jobs, arguments.modules, Progress())
    tuned = choose(tried, runs, arguments.out)
    path = arguments.out / "tuned.json"
    path.write_text(json.dumps(tuned, indent=1, allow_nan=False) + "\n")
    print(f"{MEASURE.replace('_', ' ')}; * is the best configuration of its strategy")
    for entry in tuned["strategies"].values():
        for name, score in entry["scores"].items():
            print(f"{score:.3f} {'*' if name == entry['best'] else ' '} {name}")
    print(f"written: {path}; use it with: python -m benchmarks run {arguments.benchmark} --tuned {path} …")


def _study(arguments: argparse.Namespace) -> None:
    from benchmarks.studies import Asked, get_study, run_study

    study = get_study(arguments.name)
    seeds = arguments.seeds or (study.full_seeds if arguments.full else study.seeds)
    asked = Asked(seeds, arguments.full, arguments.data, _device(arguments.device))
    run_study(study, asked, arguments.out, arguments.jobs)
    print((arguments.out / "study.txt").read_text(encoding="utf-8"), end="")
    print(f"written: {arguments.out / 'study'}.txt, .csv and .json")


def _device(name: str) -> str:
    import torch

    try:
        torch.zeros(1, device=name)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"device {name!r} cannot be used: {reason}") from None
    return name


def _compare(arguments: argparse.Namespace) -> None:
    from benchmarks.comparison import compare

    if arguments.watch:
        if arguments.format != "html" or arguments.output is None:
            raise UserError("--watch needs --format html and --output FILE")
        from benchmarks.comparison.watching import watch

        print(f"watching {arguments.directory}, writing {arguments.output}; end with Ctrl-C", flush=True)
        watch(arguments.directory, arguments.output)
        return
    text = compare(arguments.directory, arguments.format, arguments.output)
    if arguments.output is None:
        sys.stdout.write(text)
    else:
        print(f"written: {arguments.output}")


def _publish(arguments: argparse.Namespace) -> None:
    from benchmarks.comparison.publishing import publish
    from benchmarks.comparison.results import read_runs

    publish(read_runs(arguments.directory), arguments.lines, arguments.output, arguments.document)
    print(f"written: {', '.join(str(path) for path in (arguments.output, arguments.document) if path)}")


def _cost(arguments: argparse.Namespace) -> None:
    from benchmarks.cost import measure
    from benchmarks.cost.table import content, text
    from benchmarks.settings import environment

    sections = [section for section in arguments.sections.split(",") if section]
    lines = list(measure(sections, _device(arguments.device), arguments.rounds, arguments.threads))
    print(text(lines))
    if arguments.output is not None:
        words = f"--sections {arguments.sections} --rounds {arguments.rounds} --device {arguments.device}"
        command = f"python -m benchmarks cost {words} --threads {arguments.threads}"
        found = content(lines, environment(arguments.device), command)
        try:
            arguments.output.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"cannot write {arguments.output}: {error.strerror}") from None


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; None: those it was started with.

    Returns:
        The exit code: 0, or 2 for a mistake of the user's, told in one line on standard error.
    """
    warnings.filterwarnings("ignore", module="jaxopt|qpsolvers")  # imported by Avalanche, of no use to the user
    commands = {
        "list": _list,
        "run": _run,
        "tune": _tune,
        "compare": _compare,
        "publish": _publish,
        "study": _study,
        "cost": _cost,
    }
    try:
        parsed = parser().parse_args(_expanded(sys.argv[1:] if arguments is None else arguments))
        commands[parsed.command](parsed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; finished runs are kept", file=sys.stderr)
        return 130
    return 0
