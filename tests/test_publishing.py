"""Published tables: what stands in the README is what the files in the repository hold."""

import json
import re
from pathlib import Path

import pytest
from test_comparison_results import write_benchmark

from benchmarks.cli import main
from benchmarks.comparison import compare
from benchmarks.comparison.publishing import COLUMNS, in_document, markdown
from plasticity.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
PLACE = re.compile(r"<!-- table (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


def test_the_tables_of_the_readme_are_those_in_the_repository():
    tables = dict(PLACE.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    assert sorted(tables) == [path.stem for path in PUBLISHED]
    for path in PUBLISHED:
        assert tables[path.stem].strip() == markdown(json.loads(path.read_text(encoding="utf-8"))).strip()


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_a_published_table_says_how_it_was_made(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert all(command.startswith("python -m benchmarks ") for command in content["commands"])
    assert content["seeds"] == list(range(len(content["seeds"]))) and len(content["seeds"]) >= 3
    assert {"torch", "cpu", "plasticity"} <= set(content["environment"])
    assert {"naive", "fresh"} <= {row["strategy"] for row in content["rows"]}
    assert path.stat().st_size < 100_000


def publish(folder, output, *extra):
    return main(["publish", str(folder), "--output", str(output), "--command", "python -m benchmarks run x", *extra])


def test_figures_are_those_of_the_comparison(tmp_path):
    write_benchmark(tmp_path / "runs")
    output = tmp_path / "out" / "mine.json"
    assert publish(tmp_path / "runs", output) == 0
    content = json.loads(output.read_text(encoding="utf-8"))
    rows = {row["strategy"]: row for row in json.loads(compare(tmp_path / "runs", "json"))}
    assert {row["strategy"] for row in content["rows"]} == set(rows)
    for row in content["rows"]:
        for measure in COLUMNS:
            for key, value in row[measure].items():
                assert value == (
                    None if (full := rows[row["strategy"]][measure][key]) is None else pytest.approx(full, rel=1e-5)
                )
    assert content["commands"] == ["python -m benchmarks run x"] and content["seeds"] == [0, 1, 2]


def test_the_table_takes_its_place_in_a_document(tmp_path):
    write_benchmark(tmp_path / "runs")
    document = tmp_path / "README.md"
    document.write_text(
        "before\n<!-- table mine -->\nold\n<!-- end -->\nbetween\n<!-- table other -->\nkept\n<!-- end -->\n"
    )
    for _ in range(2):  # again and again
        assert publish(tmp_path / "runs", tmp_path / "mine.json", "--document", str(document)) == 0
    table = markdown(json.loads((tmp_path / "mine.json").read_text(encoding="utf-8")))
    expected = (
        f"before\n<!-- table mine -->\n\n{table}\n<!-- end -->\nbetween\n<!-- table other -->\nkept\n<!-- end -->\n"
    )
    assert document.read_text() == expected
    assert table.splitlines()[2].startswith("| naive |") and table.splitlines()[3].startswith("| fresh |")
    late = [float(re.split(r" ± | \|", line.split("| ")[2])[0]) for line in table.splitlines()[4:]]
    assert late == sorted(late, reverse=True)


@pytest.mark.parametrize("text", ["nothing", "<!-- table mine -->\n<!-- end -->\n" * 2])
def test_a_document_without_one_place_is_left_alone(text, tmp_path, capsys):
    with pytest.raises(UserError, match="one place"):
        in_document(text, "mine", "| |")
    write_benchmark(tmp_path / "runs")
    document = tmp_path / "README.md"
    document.write_text(text)
    assert publish(tmp_path / "runs", tmp_path / "mine.json", "--document", str(document)) == 2
    assert "one place" in capsys.readouterr().err
    assert document.read_text() == text and not (tmp_path / "mine.json").exists()


def test_options_are_written_behind_the_name():
    interval = {"mean": 0.5, "low": 0.4, "high": 0.6}
    nothing = {"mean": None, "low": None, "high": None}
    row = {"strategy": "redo:tau=0.1:every=200", **dict.fromkeys(COLUMNS, interval), "treated_units": nothing}
    line = markdown({"rows": [row]}).splitlines()[2]
    assert line == (
        "| redo (tau=0.1, every=200) | 0.500 ± 0.100 | 0.50 [0.40, 0.60] | 0.500 ± 0.100 | 0.500 ± 0.100 | 0.5 ± 0.1 "
        "| – | 0.50 |"
    )
