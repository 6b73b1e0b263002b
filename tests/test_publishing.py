"""Published tables: what stands in the README is what the files in the repository hold."""

import json
import re
from pathlib import Path

import pytest
from test_comparison_results import write_benchmark

from benchmarks.cli import main
from benchmarks.comparison import compare
from benchmarks.comparison.tables import SHOWN
from benchmarks.cost.long_runs import LEVEL
from benchmarks.publishing import markdown
from benchmarks.publishing.documents import in_document
from benchmarks.publishing.runs import markdown as table_of_runs
from plasticity.errors import UserError

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
PUBLISHED = sorted(path for path in RESULTS.rglob("*.json") if path.parent.name != "tuning")
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PLACE = re.compile(r"<!-- table (\S+) -->\n(.*?)<!-- end -->", re.DOTALL)


def test_the_tables_of_the_documents_are_those_in_the_repository():
    found = [place for path in DOCUMENTS for place in PLACE.findall(path.read_text(encoding="utf-8"))]
    tables = dict(found)
    assert len(tables) == len(found) and sorted(tables) == sorted(path.stem for path in PUBLISHED)
    for path in PUBLISHED:
        assert tables[path.stem].strip() == markdown(json.loads(path.read_text(encoding="utf-8"))).strip()


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: path.stem)
def test_what_is_published_says_how_it_was_made(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    commands = content.get("commands") or [content["command"]]
    assert all(command.startswith("python -m benchmarks ") for command in commands)
    assert {"torch", "cpu", "plasticity"} <= set(content["environment"])
    assert path.stat().st_size < 100_000
    if "benchmark" in content:
        assert content["seeds"] == list(range(len(content["seeds"]))) and len(content["seeds"]) >= 3
        assert {"naive", "fresh"} <= {row["strategy"] for row in content["rows"]}
    elif "study" in content:
        assert content["seeds"] >= 3 and content["finding"]
    else:
        assert all(line["ratio"]["rounds"] >= 3 for line in content["lines"] if line["unit"] != LEVEL)


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
        for measure in SHOWN:
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
    row = {"strategy": "redo:tau=0.1:every=200", **dict.fromkeys(SHOWN, interval), "treated_units": nothing}
    line = table_of_runs({"rows": [row]}).splitlines()[2]
    assert line == (
        "| redo (tau=0.1, every=200) | 0.500 ± 0.100 | 0.50 [0.40, 0.60] | 0.500 ± 0.100 | 0.500 ± 0.100 | 0.5 ± 0.1 "
        "| – | 0.50 |"
    )


INTERVAL = {"mean": 0.123456789, "low": 0.1, "high": 0.16}


def written_study(folder, **more):
    """What `study` leaves."""
    columns = [{"key": "name", "title": "which\none", "meaning": "", "digits": 3}]
    columns += [{"key": "loss", "title": "loss", "meaning": "of accuracy", "digits": 2}]
    content = {
        "study": "mine",
        "question": "Why?",
        "source": "me",
        "command": "python -m benchmarks study mine --seeds 3 --out DIR",
        "full": False,
        "seeds": 3,
        "runs": 6,
        "environment": {"torch": "2"},
        "finding": "Because.",
        "columns": columns,
        "rows": [{"name": "first", "loss": INTERVAL}, {"name": "other", "loss": None}],
        **more,
    }
    folder.mkdir(exist_ok=True)
    (folder / "study.json").write_text(json.dumps(content))
    return content


def test_a_study_is_published_with_its_finding(tmp_path):
    content = written_study(tmp_path / "runs")
    document = tmp_path / "studies.md"
    document.write_text("<!-- table mine -->\n<!-- end -->\n")
    output = tmp_path / "mine.json"
    command = ["publish", str(tmp_path / "runs"), "--output", str(output), "--document", str(document)]
    assert main(command) == 0
    assert document.read_text() == (
        "<!-- table mine -->\n\n| which one | loss |\n|---|---|\n| first | 0.12 ±0.03 |\n| other | – |\n\n"
        "*loss*: of accuracy.\n\nBecause.\n\n"
        "6 runs, 3 seeds: `python -m benchmarks study mine --seeds 3 --out DIR`.\n\n<!-- end -->\n"
    )
    assert json.loads(output.read_text())["rows"][0]["loss"]["mean"] == 0.123457
    brief = [{"name": "all", "loss": INTERVAL}]
    written_study(tmp_path / "runs", summary=brief, summary_columns=content["columns"][:1])
    assert main(command) == 0
    assert "| which one |\n|---|\n| all |\n" in document.read_text()


def test_costs_are_published(tmp_path):
    ratio = {"median": 1.034, "low": 1.0, "high": 1.061, "rounds": 30}
    line = {"section": "watching", "case": "mlp", "what": "exact", "unit": "time / naive", "ratio": ratio}
    costs = {"format": 1, "command": "python -m benchmarks cost", "environment": {}, "lines": [line]}
    (tmp_path / "found.json").write_text(json.dumps(costs))
    document = tmp_path / "costs.md"
    document.write_text("<!-- table cost -->\n<!-- end -->\n")
    output = tmp_path / "cost.json"
    assert main(["publish", str(tmp_path / "found.json"), "--output", str(output), "--document", str(document)]) == 0
    assert "| mlp | exact | time / naive | 1.03 [1.00, 1.06] | 30 |\n" in document.read_text()


def test_sources_that_cannot_be_published_are_told(tmp_path, capsys):
    output = ["--output", str(tmp_path / "out.json")]
    write_benchmark(tmp_path / "runs")
    assert main(["publish", str(tmp_path / "runs"), *output]) == 2
    assert "--command" in capsys.readouterr().err
    written_study(tmp_path / "study")
    assert main(["publish", str(tmp_path / "study"), *output, "--command", "x"]) == 2
    assert "leave --command out" in capsys.readouterr().err
    (tmp_path / "study" / "study.json").write_text("{}")
    assert main(["publish", str(tmp_path / "study"), *output]) == 2
    assert "make it again" in capsys.readouterr().err
    assert main(["publish", str(tmp_path / "nothing.json"), *output]) == 2
    assert "No such file" in capsys.readouterr().err
    assert not (tmp_path / "out.json").exists()
