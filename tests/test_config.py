"""Runs described by a file: the same as on the command line, refused by name where they are not understood."""

import json

import pytest

from benchmarks.cli import main
from benchmarks.config import words
from plasticity.errors import UserError

OPTIONS = ["strategies", "seeds", "out", "epochs", "batch-size", "learning-rate", "import"]


def write(folder, text):
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_a_file_becomes_the_words_of_a_command_line(tmp_path):
    path = write(
        tmp_path,
        """
        seeds: 3
        benchmark: split-digits
        learning_rate: 0.0003
        strategies:
          - naive
          - redo: {tau: 0.1, every: epoch}
          - [replay, l2-init: {strength: 1.0e-3}]
          - {l2: {}, hyper-hypo: {mode: prune}}
          - synaptic-stripping: {guard: false}
          - fire: {exclude: [head, "trunk.*1"]}
        import: [mine, yours]
        """,
    )
    assert words(path, OPTIONS) == [
        "split-digits",
        "--seeds=3",
        "--learning-rate=0.0003",
        "--strategies=naive,redo:tau=0.1:every=epoch,replay+l2-init:strength=0.001,l2+hyper-hypo:mode=prune,"
        "synaptic-stripping:guard=false,fire:exclude=head|trunk.*1",
        "--import",
        "mine",
        "--import",
        "yours",
    ]
    assert words(write(tmp_path, "strategies: naive+l2"), OPTIONS) == ["--strategies=naive+l2"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epocs: 3", r"unknown key 'epocs' \(did you mean epochs\?\): known are batch_size, benchmark, epochs"),
        ("batch-size: 3", r"unknown key 'batch-size' \(did you mean batch_size\?\)"),
        ("3: 4", "unknown key 3"),
        ("- naive", "should hold keys and values"),
        ("", "should hold keys and values"),
        ("a: [", "is not valid YAML"),
        ("a: !!python/object/apply:os.getcwd []", "is not valid YAML"),
        ("epochs: yes", "epochs should be a name or a number, not True"),
        ("epochs: [1]", r"epochs should be a name or a number, not \[1\]"),
        ("strategies: [redo: 3]", "options are written {name: value}, not 3"),
        ("strategies: [redo: {tau: [1, 2]}]", r"option tau cannot be \[1, 2\]"),
        ("strategies: [redo: {tau: '1+l2'}]", "option tau cannot be '1[+]l2'"),
    ],
)
def test_what_is_not_understood_is_refused_by_name(text, message, tmp_path):
    path = write(tmp_path, text)
    with pytest.raises(UserError, match=message) as error:
        words(path, OPTIONS)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path):
    with pytest.raises(UserError, match="cannot read"):
        words(tmp_path / "absent.yaml", OPTIONS)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="it is no text"):
        words(tmp_path / "binary.yaml", OPTIONS)


def settings(folder):
    found = {}
    for path in folder.rglob("config.json"):
        content = json.loads(path.read_text())
        found[content["strategy"], content["seed"]] = content["settings"]
    return found


def test_a_run_by_file_is_the_run_by_words_which_have_the_last_say(tmp_path):
    path = write(
        tmp_path,
        f"""
        benchmark: split-digits
        strategies: [naive, l2: {{strength: 0.001}}]
        seeds: 1
        experiences: 2
        epochs: 3
        optimizer: sgd
        momentum: 0.9
        weight_decay: 0.01
        model: mlp-2x16
        out: {tmp_path / "one"}
        """,
    )
    assert main(["run", "--config", str(path), "--epochs", "1"]) == 0
    same = ["--experiences", "2", "--epochs", "1", "--optimizer", "sgd", "--momentum", "0.9", "--weight-decay", "0.01"]
    names = ["--strategies", "naive,l2:strength=0.001", "--seeds", "1", "--model", "mlp-2x16"]
    assert main(["run", "split-digits", *names, *same, "--out", str(tmp_path / "two")]) == 0
    assert settings(tmp_path / "one") == settings(tmp_path / "two")
    assert {key: value["epochs"] for key, value in settings(tmp_path / "one").items()} == {
        ("naive", 0): 1,
        ("l2:strength=0.001", 0): 1,
    }


def test_the_stored_settings_of_a_run_run_again_as_they_are(tmp_path):
    first, again = tmp_path / "first", tmp_path / "again"
    arguments = ["--strategies", "redo:tau=0.1:every=5", "--seeds", "4-4", "--experiences", "2", "--epochs", "1"]
    changed = ["--learning-rate", "0.0123456789", "--batch-size", "64", "--scenario", "task", "--weight-decay", "1e-5"]
    assert main(["run", "split-digits", *arguments, *changed, "--out", str(first)]) == 0
    (config,) = first.rglob("config.json")
    assert main(["run", f"--config={config}", "--out", str(again)]) == 0
    assert settings(first) == settings(again)
    one, other = (next(folder.rglob("metrics.jsonl")).read_text() for folder in (first, again))
    assert one == other


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config"], "--config takes one file"),
        (["--config=a", "--config=b"], "--config takes one file"),
        (["--config", "absent.yaml"], "cannot read absent.yaml"),
    ],
)
def test_mistakes_beside_the_file_are_answered_in_one_line(arguments, message, capsys):
    assert main(["run", *arguments]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(("text", "message"), [("5-3", "neither"), ("a-b", "neither"), ("0", "at least 1"), ("-1", "")])
def test_seeds_without_meaning_are_refused(text, message, tmp_path, capsys):
    assert main(["run", "split-digits", "--strategies", "naive", f"--seeds={text}", "--out", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
