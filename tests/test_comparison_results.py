"""Reading of finished runs: what is read, and that whatever is wrong is said in one line that names the file.

`write_run` and `write_benchmark` make results folders as the runner leaves them, for other tests too.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.comparison.measures import FURTHER_MEASURES, result_measures
from benchmarks.comparison.results import is_fresh, read_runs
from plasticity.errors import UserError

SETTINGS = {"experiences": 6, "epochs": 5, "learning_rate": 0.005, "optimizer": "Adam", "model": "MLP", "device": "cpu"}
ENVIRONMENT = {"python": "3.11.7", "torch": "2.9.0", "cpu": "two cores"}


def write_run(
    directory: Path,
    strategy: str = "naive",
    seed: int = 0,
    benchmark: str = "permuted-digits",
    end: float = 0.5,
    dead: float = 0.7,
    forgetting: float = 0.1,
    experiences: int = 6,
    layers: tuple[str, ...] = ("features.0", "features.2"),
    settings: dict[str, Any] | None = None,
    environment: dict[str, Any] | None = None,
) -> Path:
    """Writes a valid finished run whose learning accuracy goes from 0.95 to `end` with a little noise."""
    learned = np.linspace(0.95, end, experiences) + 0.01 * np.sin(seed * len(strategy) + np.arange(experiences))
    fresh = is_fresh(strategy)
    matrix: list[list[float | None]] = []
    for i in range(experiences):
        row: list[float | None] = [max(0.0, float(value) - forgetting * (i > j)) for j, value in enumerate(learned)]
        matrix.append([value if j == i or (j < i and (not fresh or i == experiences - 1)) else None
                       for j, value in enumerate(row)])  # fmt: skip
    units = []
    for i in range(experiences):
        share = min(1.0, dead * (i + 1) / experiences + 0.01 * (seed % 3))
        layer = {"size": 128, "dead": share, "dormant": share, "over_active": 0.0}
        units.append(
            {"experience": i, "samples": 512, "layers": {name: dict(layer) for name in layers}, "dead_fraction": share,
             "dormant_fraction": share, "over_active_fraction": 0.0, "effective_rank": 40 - 30 * share}
        )  # fmt: skip
    head = {"format": 1, "benchmark": benchmark, "strategy": strategy, "seed": seed}
    result = head | {
        "experiences": experiences,
        "accuracy_matrix": matrix,
        "learning_accuracy": [float(matrix[i][i] or 0) for i in range(experiences)],
        "units": units,
        "treatments": []
        if strategy in ("naive", "fresh")
        else [
            {
                "experience": i,
                "method": strategy,
                "units": dict.fromkeys(layers, 3 + seed),
                "output_shift": 0.1 * i,
                "accuracy_before": 0.5,
                "accuracy_after": 0.5 - 0.01 * min(i + seed, 50),
            }
            for i in range(1, experiences)
        ],
        "counts_treated_units": True,
        "online_accuracy": [float(value) / 2 for value in learned],
        "untrained_accuracy": [None if fresh or i == 0 else 0.1 for i in range(experiences)],
        "accuracy_before_learning": [None if fresh or i == 0 else 0.1 + 0.01 * min(i, 90) for i in range(experiences)],
        "seconds": 12.5 + seed,
        "processor": {"seconds": (8.0 if strategy in ("naive", "fresh") else 10.0) + seed},
    }
    result["measures"] = result_measures(result, fresh)
    config = head | {
        "settings": SETTINGS | {"experiences": experiences} | (settings or {}),
        "environment": ENVIRONMENT if environment is None else environment,
    }
    folder = directory / benchmark / strategy / f"seed-{seed}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "metrics.jsonl").write_text('{"name": "Loss_MB", "value": 0.5, "x": 0}\n', encoding="utf-8")
    (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    return folder


def write_benchmark(directory: Path, seeds: int = 3, **arguments: Any) -> Path:
    """Writes naive, fresh and two treatments, of which one helps and one does not."""
    for seed in range(seeds):
        write_run(directory, "naive", seed, end=0.5, dead=0.7, **arguments)
        write_run(directory, "fresh", seed, end=0.93, dead=0.1, **arguments)
        write_run(directory, "synaptic-stripping", seed, end=0.85, dead=0.04, forgetting=0.15, **arguments)
        write_run(directory, "replay+hyper-hypo", seed, end=0.5 + 0.02 * (seed - 1), dead=0.69, **arguments)
    return directory


def edit(path: Path, **changes: Any) -> None:
    """Changes fields of a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | changes), encoding="utf-8")


def error_of(directory: Path) -> str:
    """The error that reading a folder raises: always one line."""
    with pytest.raises(UserError) as caught:
        read_runs(directory)
    message = str(caught.value)
    assert message and "\n" not in message and len(message) < 600
    return message


def test_runs_are_read_in_order(tmp_path):
    write_benchmark(tmp_path, seeds=11)
    write_run(tmp_path, benchmark="cifar100-pairs")
    comparison = read_runs(tmp_path)
    assert list(comparison) == ["cifar100-pairs", "permuted-digits"]
    strategies = comparison["permuted-digits"]
    assert list(strategies) == ["naive", "fresh", "replay+hyper-hypo", "synaptic-stripping"]
    assert [run.seed for run in strategies["naive"]] == list(range(11))
    run = strategies["naive"][1]
    stored = json.loads((tmp_path / "permuted-digits/naive/seed-1/result.json").read_text(encoding="utf-8"))
    assert run.learning_accuracy.tolist() == stored["learning_accuracy"]
    assert run.measures == stored["measures"] | {"seconds": 13.5, "process_seconds": 9.0}
    assert np.isnan(run.accuracy_matrix[0, 1]) and run.settings["epochs"] == 5


def test_what_is_no_finished_run_is_left_alone(tmp_path):
    write_benchmark(tmp_path)
    before = read_runs(tmp_path)
    (tmp_path / "report.html").write_text("", encoding="utf-8")
    (tmp_path / "notes" / "mine").mkdir(parents=True)
    (tmp_path / "permuted-digits" / "naive" / ".seed-7").mkdir()  # the runner's unfinished work
    (tmp_path / "permuted-digits" / "naive" / "seed-7.partial").mkdir()
    (tmp_path / "permuted-digits" / ".naive" / "seed-7").mkdir(parents=True)
    (tmp_path / "permuted-digits" / "naive" / "seed-8").write_text("a file", encoding="utf-8")
    after = read_runs(tmp_path)
    assert {name: len(runs) for name, runs in after["permuted-digits"].items()} == {
        name: len(runs) for name, runs in before["permuted-digits"].items()
    }


def test_empty_and_absent_folders_say_what_to_run(tmp_path):
    assert "python -m benchmarks run" in error_of(tmp_path)
    assert f"--out {tmp_path}" in error_of(tmp_path)
    assert "absent" in error_of(tmp_path / "absent")
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert "file is no readable folder" in error_of(tmp_path / "file")


def test_a_folder_inside_the_results_is_recognised(tmp_path):
    folder = write_run(tmp_path)
    for inside in (folder.parent.parent, folder.parent):
        assert error_of(inside).endswith(f"give the results folder above it: {tmp_path.resolve()}")


@pytest.mark.parametrize("name", ["config.json", "result.json"])
def test_missing_and_corrupt_files(tmp_path, name):
    path = write_run(tmp_path) / name
    text = path.read_text(encoding="utf-8")
    damaged: list[tuple[bytes, str]] = [
        (text[: len(text) // 2].encode(), "is not valid JSON"),
        (b"", "is not valid JSON"),
        (b"\xff\xfe\x00", "is not valid JSON"),
        (b'{"format": 1, "seed": NaN}', "is not valid JSON (NaN"),
        (b"[" * 100_000, "is not valid JSON"),
        (b"[1, 2]", "was not written by a benchmark run"),
        (b"{}", "was not written by a benchmark run"),
        (b'{"format": 2}', "has format 2, and this version reads format 1 only"),
        (b'{"format": true}', "has format True"),
        (b'{"format": 1}', "seed is missing"),
    ]
    for content, problem in damaged:
        path.write_bytes(content)
        message = error_of(tmp_path)
        assert message.startswith(f"{path}: ") and problem in message
    path.unlink()
    assert error_of(tmp_path).startswith(f"{path}: is missing")
    path.mkdir()
    assert error_of(tmp_path).startswith(f"{path}: cannot be read")


UNIT = {"experience": 0, "samples": 512, "layers": {}, "dead_fraction": 0.5, "dormant_fraction": 0.5,
        "over_active_fraction": 0.0, "effective_rank": None}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"experiences": 7}, "accuracy_matrix should have 7 entries"),
        ({"experiences": "6"}, "experiences should be of type int"),
        ({"experiences": True}, "experiences should be of type int"),
        ({"accuracy_matrix": {}}, "accuracy_matrix should be of type list"),
        ({"accuracy_matrix": [[0.5] * 6] * 5 + [[2] * 6]}, "should be an accuracy from 0 to 1"),
        ({"accuracy_matrix": [[None] * 6] * 6}, "accuracy_matrix[0][0] is missing"),
        ({"accuracy_matrix": [[0.5] * 6] * 6}, "learning_accuracy[0] disagrees"),
        ({"learning_accuracy": [0.5] * 5}, "learning_accuracy should have 6 entries"),
        ({"learning_accuracy": ["x"] * 6}, "learning_accuracy[0] should be a number from 0 to 1"),
        ({"units": []}, "units should have 6 entries"),
        ({"units": [1] * 6}, "units[0] should be an object"),
        ({"units": [UNIT] * 6}, "units[1].experience should be 1"),
        ({"units": [UNIT | {"layers": {"a": 1}}] * 6}, "units[0].layers.a should be an object"),
        (
            {"units": [UNIT | {"layers": {"a": {"size": 1, "dead": 2}}}] * 6},
            "units[0].layers.a.dead should be a number",
        ),
        ({"units": [UNIT | {"dead_fraction": None}] * 6}, "units[0].dead_fraction should be a number"),
        ({"units": [UNIT | {"effective_rank": -1}] * 6}, "units[0].effective_rank should be a number"),
        ({"treatments": [1]}, "treatments[0] should be an object"),
        ({"treatments": None}, "treatments should be of type list"),
        ({"counts_treated_units": 1}, "counts_treated_units should be true or false"),
        ({"treatments": [{"experience": 1, "units": {"a": -1}}]}, "treatments[0] should say how many units"),
        ({"treatments": [{"experience": 1, "units": 3}]}, "treatments[0] should say how many units"),
        ({"treatments": [{"experience": 6, "entries": 3}]}, "treatments[0].experience should be from 0 to 5"),
        ({"treatments": [{"units": {}, "output_shift": -1}]}, "treatments[0].output_shift should be a number"),
        ({"treatments": [{"units": {}, "accuracy_after": 0.5}]}, "treatments[0] should have both accuracy_before"),
        (
            {"treatments": [{"units": {}, "accuracy_after": 0.5, "accuracy_before": 2}]},
            "treatments[0].accuracy_before should be a number from 0 to 1",
        ),
        ({"online_accuracy": [0.5] * 5}, "online_accuracy should have 6 entries"),
        ({"online_accuracy": None}, "online_accuracy should be of type list"),
        ({"untrained_accuracy": [0.5] * 5 + [1.1]}, "untrained_accuracy[5] should be a number from 0 to 1"),
        ({"accuracy_before_learning": [None] * 5 + ["x"]}, "accuracy_before_learning[5] should be a number"),
        ({"processor": {"seconds": "x"}}, "processor.seconds should be a number"),
        ({"processor": 1.5}, "processor should be of type dict"),
        ({"seconds": None}, "seconds should be a number"),
        ({"seconds": -1}, "seconds should be a number"),
        ({"seconds": 10**400}, "seconds should be a number"),
        ({"measures": {}}, "measures.average_accuracy is None, but the data beside it give"),
        ({"measures": {"average_accuracy": "x"}}, "measures.average_accuracy should be a number or null"),
        ({"benchmark": "other"}, "belongs to other/naive/seed-0, not to the folder it is in"),
        ({"strategy": "redo"}, "belongs to permuted-digits/redo/seed-0"),
        ({"seed": 1}, "belongs to permuted-digits/naive/seed-1"),
        ({"seed": 0.0}, "seed should be of type int"),
    ],
)
def test_impossible_results(tmp_path, changes, problem):
    path = write_run(tmp_path) / "result.json"
    edit(path, **changes)
    message = error_of(tmp_path)
    assert message.startswith(f"{path}: ") and problem in message


def test_early_runs_that_measured_less_are_read(tmp_path):
    later = "counts_treated_units processor online_accuracy untrained_accuracy accuracy_before_learning".split()
    for strategy, treatments, expected in (
        ("naive", [], 0),
        ("fresh", [], 5 * 256),
        ("upgd", [], None),
        ("redo", [{"experience": 3, "units": {"features.0": 4}, "recycled": 6, "output_shift": 0.25}], 6),
    ):
        path = write_run(tmp_path, strategy) / "result.json"
        result = json.loads(path.read_text(encoding="utf-8"))
        kept = {name: value for name, value in result.items() if name not in later}
        kept["measures"] = {name: value for name, value in result["measures"].items() if name not in FURTHER_MEASURES}
        path.write_text(json.dumps(kept | {"treatments": treatments}), encoding="utf-8")
        measures = read_runs(tmp_path)["permuted-digits"][strategy][0].measures
        assert measures["treated_units"] == expected and measures["process_seconds"] is None
        assert (
            measures["average_online_accuracy"] is measures["forward_transfer"] is measures["accuracy_damage"] is None
        )
        assert measures["output_shift"] == (0.25 if strategy == "redo" else None)
        assert measures["dead_unit_area"] == pytest.approx(result["measures"]["dead_unit_area"])


def test_measures_that_disagree_with_the_data_are_refused(tmp_path):
    path = write_run(tmp_path, "redo") / "result.json"
    measures = json.loads(path.read_text(encoding="utf-8"))["measures"]
    for name, value in measures.items():
        edit(path, measures=measures | {name: 0.01 if value is None else value + 0.01})
        assert f"measures.{name} is" in error_of(tmp_path)
    edit(path, measures=measures)
    read_runs(tmp_path)


@pytest.mark.parametrize("name", ["settings", "environment"])
def test_incomplete_configurations(tmp_path, name):
    path = write_run(tmp_path) / "config.json"
    edit(path, **{name: None})
    assert error_of(tmp_path).startswith(f"{path}: {name} should be of type dict")


def test_different_settings_are_not_averaged(tmp_path):
    write_run(tmp_path, seed=0)
    write_run(tmp_path, seed=1, settings={"seed": 1})  # the seed may differ
    write_run(tmp_path, benchmark="split-digits", settings={"epochs": 1})  # another benchmark may differ
    read_runs(tmp_path)
    write_run(tmp_path, "fresh", seed=0, settings={"epochs": 3, "weight_decay": 0.1})
    message = error_of(tmp_path)
    assert "permuted-digits" in message
    assert "epochs is 3 in fresh/seed-0 and 5 in naive/seed-0" in message
    assert "weight_decay is 0.1 in fresh/seed-0 and absent in naive/seed-0" in message
    assert "learning_rate" not in message


def test_different_streams_are_not_averaged(tmp_path):
    write_run(tmp_path, seed=0, experiences=6, settings={"experiences": None})
    write_run(tmp_path, seed=1, experiences=5, settings={"experiences": None})
    assert "naive/seed-0 has 6 experiences and naive/seed-1 has 5" in error_of(tmp_path)


def test_combinations_with_fresh_are_fresh():
    assert is_fresh("fresh") and is_fresh("fresh+replay")
    assert not is_fresh("naive") and not is_fresh("refresh")
