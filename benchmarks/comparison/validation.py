"""Checks on what a results folder holds: each raises a ValueError that names the field and what it should be."""

import json
import math
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from benchmarks.comparison.measures import FURTHER_MEASURES, as_accuracy_matrix, result_measures, run_measures

FORMAT = 1
FRACTIONS = ("dead", "dormant", "over_active")


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a number that JSON allows")


def read_object(path: Path) -> dict[str, Any]:
    """Reads a file that a benchmark run wrote.

    Args:
        path: a JSON file.

    Returns:
        The object in it, whose format is known.

    Raises:
        ValueError: if the file is absent, unreadable, no JSON object, or of another format.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except FileNotFoundError:
        raise ValueError("is missing: the run is incomplete; remove its folder and run it again") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({error.strerror})") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"is not valid JSON ({' '.join(str(error).split())})") from None
    if not isinstance(content, dict) or "format" not in content:
        raise ValueError('was not written by a benchmark run (there is no "format" in it)')
    if type(content["format"]) is not int or content["format"] != FORMAT:
        raise ValueError(f"has format {content['format']!r:.40}, and this version reads format {FORMAT} only")
    return content


def field(content: dict[str, Any], name: str, kind: type, where: str = "") -> Any:
    """Looks a field up and checks its type.

    Args:
        content: a JSON object.
        name: the field.
        kind: the type it should have.
        where: what to call the object in an error, with a dot at its end.

    Returns:
        The value.

    Raises:
        ValueError: if the field is absent or has another type.
    """
    if name not in content:
        raise ValueError(f"{where}{name} is missing")
    value = content[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where}{name} should be of type {kind.__name__}, not {value!r:.40}")
    return value


def number(value: Any, where: str, high: float = math.inf) -> float:
    """Checks a number that cannot be negative.

    Args:
        value: what the file holds.
        where: what to call it in an error.
        high: the largest allowed value.

    Returns:
        The value as a float.

    Raises:
        ValueError: if it is no number from 0 to `high`.
    """
    if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= high:
        try:
            converted = float(value)
        except OverflowError:
            converted = math.inf
        if math.isfinite(converted):
            return converted
    raise ValueError(f"{where} should be a number from 0 to {high}, not {value!r:.40}")


def _check_units(entry: Any, experience: int) -> None:
    where = f"units[{experience}]"
    if not isinstance(entry, dict):
        raise ValueError(f"{where} should be an object")
    if field(entry, "experience", int, where + ".") != experience:
        raise ValueError(f"{where}.experience should be {experience}, not {entry['experience']}")
    field(entry, "samples", int, where + ".")
    for name, layer in field(entry, "layers", dict, where + ".").items():
        if not isinstance(layer, dict):
            raise ValueError(f"{where}.layers.{name:.60} should be an object")
        field(layer, "size", int, f"{where}.layers.{name:.60}.")
        for fraction in FRACTIONS:
            number(layer.get(fraction), f"{where}.layers.{name:.60}.{fraction}", 1)
    for fraction in FRACTIONS:
        number(entry.get(f"{fraction}_fraction"), f"{where}.{fraction}_fraction", 1)
    for name in ("effective_rank", "gradient_effective_rank", "weight_magnitude", "gradient_norm"):
        if entry.get(name) is not None:
            number(entry[name], f"{where}.{name}")
    if entry.get("sample_plasticity") is not None:
        number(entry["sample_plasticity"], f"{where}.sample_plasticity", 1)
    if "diverged" in entry:
        field(entry, "diverged", str, where + ".")
    eigenvalue = entry.get("largest_hessian_eigenvalue")
    if eigenvalue is not None and (isinstance(eigenvalue, bool) or not isinstance(eigenvalue, (int, float))):
        raise ValueError(f"{where}.largest_hessian_eigenvalue should be a number or null, not {eigenvalue!r:.40}")


def _same(first: float | None, second: float | None) -> bool:
    if first is None or second is None:
        return first is second
    return math.isclose(first, second, rel_tol=1e-4, abs_tol=1e-4)


def _check_treatments(result: dict[str, Any]) -> None:
    for i, treatment in enumerate(field(result, "treatments", list)):
        if not isinstance(treatment, dict):
            raise ValueError(f"treatments[{i}] should be an object")
        if treatment.get("output_shift") is not None:  # null where a network has diverged
            number(treatment["output_shift"], f"treatments[{i}].output_shift")
        if ("accuracy_before" in treatment) != ("accuracy_after" in treatment):
            raise ValueError(f"treatments[{i}] should have both accuracy_before and accuracy_after, or neither")
        for name in ("accuracy_before", "accuracy_after"):
            if name in treatment:
                number(treatment[name], f"treatments[{i}].{name}", 1)
    if not isinstance(result.get("counts_treated_units", True), bool):
        raise ValueError(f"counts_treated_units should be true or false, not {result['counts_treated_units']!r:.40}")


def _check_accuracies(result: dict[str, Any], name: str, count: int) -> None:
    """Checks a list of accuracies, one an experience, which early runs do not have."""
    if name not in result:
        return
    values = field(result, name, list)
    if len(values) != count:
        raise ValueError(f"{name} should have {count} entries, one an experience, not {len(values)}")
    for i, value in enumerate(values):
        if value is not None:
            number(value, f"{name}[{i}]", 1)


def _check_sample(rows: np.ndarray, count: int) -> None:
    """Checks that as many earlier experiences were tested after each as the result says."""
    for i, row in enumerate(rows):
        found, expected = int(np.isfinite(row[:i]).sum()), min(count, i)
        if found != expected:
            raise ValueError(f"accuracy_matrix[{i}] should have {expected} entries before the diagonal, not {found}")


def check_result(result: dict[str, Any], fresh: bool) -> dict[str, float | None]:
    """Checks a run's result against the format, and its measures against the data they come from.

    Args:
        result: what result.json holds.
        fresh: whether every experience had a new network.

    Returns:
        The measures of the run by name, computed anew from the data in the file.

    Raises:
        ValueError: if a field is absent or impossible, or a measure in the file disagrees with the data beside it.
    """
    experiences = field(result, "experiences", int)
    matrix = as_accuracy_matrix(field(result, "accuracy_matrix", list))
    units = field(result, "units", list)
    learned = field(result, "learning_accuracy", list)
    for name, count in (("accuracy_matrix", len(matrix)), ("units", len(units)), ("learning_accuracy", len(learned))):
        if count != experiences:
            raise ValueError(f"{name} should have {experiences} entries, one an experience, not {count}")
    run_measures(matrix, fresh, "evaluate" in result)  # complains of a matrix with holes in it
    scored = result.get("scored", list(range(experiences)))  # early runs score all
    if not isinstance(scored, list) or not scored or scored != [i for i in range(experiences) if i in scored]:
        raise ValueError(f"scored should list some of the experiences 0 to {experiences - 1}, in order")
    if "evaluate" in result and not fresh:
        _check_sample(matrix[: scored[-1]], field(result, "evaluate", int))
    for i, value in enumerate(learned):
        if not _same(number(value, f"learning_accuracy[{i}]", 1), matrix[i, i]):
            raise ValueError(f"learning_accuracy[{i}] disagrees with the diagonal of accuracy_matrix")
    for i, entry in enumerate(units):
        _check_units(entry, i)
    marked = [i for i, entry in enumerate(units) if "diverged" in entry]
    if result.get("diverged") != (marked[0] if marked else None):
        raise ValueError(f"diverged is {result.get('diverged')!r:.40}, but the units say {marked[:1]}")
    _check_treatments(result)
    for name in ("online_accuracy", "untrained_accuracy", "accuracy_before_learning"):
        _check_accuracies(result, name, experiences)
    field(result, "strategy", str)
    measures = result_measures(result, fresh)

    stored = field(result, "measures", dict)
    for name, found in measures.items():
        if name in FURTHER_MEASURES and name not in stored:
            continue  # an early run
        value = stored.get(name)
        if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise ValueError(f"measures.{name} should be a number or null, not {value!r:.40}")
        if not _same(value, found):
            raise ValueError(f"measures.{name} is {value}, but the data beside it give {found}")
    measures["seconds"] = number(result.get("seconds"), "seconds")
    measures["process_seconds"] = None
    if "processor" in result:  # early runs have none
        measures["process_seconds"] = number(field(result, "processor", dict).get("seconds"), "processor.seconds")
    return measures
