"""A run described by a file: YAML (or JSON) with everything that the command line of `run` has.

    benchmark: cifar100-pairs
    strategies:
      - naive
      - redo: {tau: 0.1, every: 200}
      - [replay, l2-init: {strength: 0.001}]     # combined, as replay+l2-init:strength=0.001
    seeds: 3
    out: results/pairs
    model: pairs-conv
    optimizer: adam
    learning_rate: 0.005

Keys are the long options of the command line, with _ for -. The file becomes words of a command line, so that each
value is checked in one place, and words that stand beside `--config FILE` have the last say. The config.json in a run's
folder is such a file, too: it runs again as it is.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from benchmarks.settings import FORMAT
from plasticity.errors import UserError, unknown
from strategies.registry import option_value

FLAGS = ("channels_last", "compile")
"""Keys whose values are true and false."""
_OF_A_RUN = {"format", "benchmark", "strategy", "seed", "settings", "environment"}


def words(path: Path, options: Collection[str]) -> list[str]:
    """Read a file and return it as words of a command line, the benchmark first.

    Args:
        path: The file.
        options: Long options that it may have, without dashes, such as "batch-size".

    Raises:
        UserError: If it cannot be read, or a key is unknown or has no such value.
    """
    from benchmarks.yaml_files import read_yaml

    content = read_yaml(path)
    if not isinstance(content, dict):
        raise UserError(f"{path} should hold keys and values, such as 'benchmark: permuted-digits'")
    try:
        return _words(_of_run(content) if set(content) == _OF_A_RUN else content, options)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except RecursionError:
        raise UserError(f"{path}: a list is in itself") from None


def _of_run(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of a run that its config.json tells of."""
    if not isinstance(config["settings"], dict):
        raise UserError("settings should be keys and values")
    if config["format"] != FORMAT:
        raise UserError(f"it was written by another version (format {config['format']}, and this one reads {FORMAT})")
    if not isinstance(config["seed"], int) or config["seed"] < 0:
        raise UserError(f"seed should be a whole number of at least 0, not {config['seed']!r}")
    own = {
        "benchmark": config["benchmark"],
        "strategies": [config["strategy"]],
        "seeds": f"{config['seed']}-{config['seed']}",
    }
    return {**own, **{key: value for key, value in config["settings"].items() if value is not None}}


def _words(content: Mapping[str, Any], options: Collection[str]) -> list[str]:
    known = ["benchmark", *(option.replace("-", "_") for option in options)]
    found: list[str] = []
    for key, value in content.items():
        if key not in known:
            raise unknown("key", key, sorted(known))
        if key == "strategies":
            value = ",".join(_strategy(entry) for entry in (value if isinstance(value, list) else [value]))
        elif key == "measure" and isinstance(value, list):
            value = ",".join(_scalar(key, entry) for entry in value)
        elif key == "import":
            for module in value if isinstance(value, list) else [value]:
                found += ["--import", _scalar(key, module)]
            continue
        if key in FLAGS:
            found.append(_flag(key, value))
        elif key == "benchmark":
            found.insert(0, _scalar(key, value))
        else:
            found.append(f"--{key.replace('_', '-')}={_scalar(key, value)}")
    return found


def _strategy(entry: Any) -> str:
    """Write a strategy as on the command line: a name, {name: {option: value}}, or a list of these to combine."""
    if isinstance(entry, list):
        return "+".join(_strategy(part) for part in entry)
    if isinstance(entry, dict):
        return "+".join(_with_options(str(name), options) for name, options in entry.items())
    return _scalar("strategies", entry)


def _with_options(name: str, options: Any) -> str:
    if not isinstance(options, dict):
        raise UserError(f"strategy {name}: options are written {{name: value}}, not {options!r}")
    parts = [name]
    for option, value in options.items():
        if isinstance(value, list) and all(isinstance(each, str) for each in value):
            value = "|".join(value)  # several names of layers, say
        text = value if isinstance(value, str) and option_value(value) == value else json.dumps(value, default=str)
        if set(text) & set(":,+"):
            raise UserError(f"strategy {name}: option {option} cannot be {value!r}")
        parts.append(f"{option}={text}")
    return ":".join(parts)


def _flag(key: str, value: Any) -> str:
    if not isinstance(value, bool):
        raise UserError(f"{key} should be true or false, not {value!r}")
    return f"--{'' if value else 'no-'}{key.replace('_', '-')}"


def _scalar(key: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise UserError(f"{key} should be a name or a number, not {value!r}")
    return str(value)
