"""The command line: `python -m benchmarks list | run | tune | compare | publish | study | cost`."""

import argparse
import sys
import warnings

from benchmarks.cli.arguments import Parser, misunderstood
from benchmarks.cli.measuring import add_cost, add_study
from benchmarks.cli.running import add_run, add_tune, expanded
from benchmarks.cli.showing import add_compare, add_list, add_publish
from benchmarks.runner import RunError
from plasticity.errors import UserError

_COMMANDS = {
    "list": add_list,
    "run": add_run,
    "tune": add_tune,
    "compare": add_compare,
    "publish": add_publish,
    "study": add_study,
    "cost": add_cost,
}


def parser() -> tuple[argparse.ArgumentParser, dict[str, list[str]]]:
    """Return the parser of the command line, and the long options of each command."""
    main = Parser(prog="python -m benchmarks", description="Compare plasticity and forgetting on streams of tasks.")
    titles = f"{{{','.join(_COMMANDS)}}}"
    commands = main.add_subparsers(required=True, metavar=titles, parser_class=Parser)
    for add in _COMMANDS.values():
        add(commands)
    return main, {
        name: [option for option in command._option_string_actions if option.startswith("--")]
        for name, command in commands.choices.items()
    }


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: Words after the program's name; None: those it was started with.

    Returns:
        The exit code: 0, or 2 for a mistake of the user's, told in one line on standard error.
    """
    warnings.filterwarnings("ignore", module="jaxopt|qpsolvers")  # imported by Avalanche, of no use to the user
    words = sys.argv[1:] if arguments is None else arguments
    try:
        main_parser, options = parser()
        words = expanded(words, [option[2:] for option in options["run"] if not option.startswith("--no-")])
        parsed, rest = main_parser.parse_known_args(words)
        if rest:
            raise misunderstood(rest[0], options[words[0]])
        parsed.execute(parsed)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; what is finished is kept", file=sys.stderr)
        return 130
    return 0
