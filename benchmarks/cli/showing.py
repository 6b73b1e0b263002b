"""The commands that show: `list`, `compare` and `publish`."""

import argparse
import sys
from typing import Any

from benchmarks.cli.arguments import add_modules, path
from benchmarks.runner import import_modules
from plasticity.errors import UserError


def add_list(commands: Any) -> None:
    """Add the command `list`."""
    listing = commands.add_parser("list", help="show the benchmarks, strategies, models and studies")
    listing.set_defaults(execute=_list)
    add_modules(listing)


def add_compare(commands: Any) -> None:
    """Add the command `compare`."""
    compare = commands.add_parser("compare", help="compare finished runs")
    compare.set_defaults(execute=_compare)
    compare.add_argument("directory", type=path, metavar="DIR", help="the --out folder of `run`")
    compare.add_argument("--format", default="table", metavar="F", help="table, csv, json or html (default: table)")
    compare.add_argument("--output", type=path, metavar="FILE", help="write to a file instead of printing")
    compare.add_argument(
        "--watch", action="store_true", help="write the page anew while runs are going on, until interrupted"
    )


def add_publish(commands: Any) -> None:
    """Add the command `publish`."""
    publish = commands.add_parser("publish", help="write a table to keep, with how it was made")
    publish.set_defaults(execute=_publish)
    publish.add_argument(
        "source",
        type=path,
        metavar="DIR",
        help="the --out folder of `run`, with one benchmark, or of `study`; or the --output file of `cost`",
    )
    publish.add_argument("--output", type=path, required=True, metavar="FILE", help="NAME.json")
    publish.add_argument("--document", type=path, metavar="FILE", help="Markdown with a place <!-- table NAME -->")
    publish.add_argument(
        "--command",
        dest="lines",
        action="append",
        default=[],
        metavar="C",
        help="that made the runs; may be repeated",
    )


def _list(arguments: argparse.Namespace) -> None:
    from benchmarks.models import MODELS
    from benchmarks.streams import BENCHMARKS
    from benchmarks.studies import STUDIES
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
    print(f"studies: {', '.join(STUDIES)}")


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
    from benchmarks.publishing import publish

    publish(arguments.source, arguments.lines, arguments.output, arguments.document)
    print(f"written: {', '.join(str(path) for path in (arguments.output, arguments.document) if path)}")
