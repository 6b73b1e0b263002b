"""Random configurations of runs: taken as they are meant, or refused in one line; never a traceback."""

import json
import shutil
from dataclasses import replace

import commands
from commands import run
from configurations import PLUGINS, build, check_meaning, holds, plugin_calls, strategy_names
from hypothesis import assume, given
from hypothesis import strategies as st
from sizes import COUNTS, SIZE, drawn

from benchmarks.cli import main
from plasticity.errors import UserError


def one_line(error):
    """Fail unless a message is one line with something in it."""
    message = str(error)
    assert message.strip() and "\n" not in message and len(message) < 2000, message


def counted(kind, case):
    """Call a case and count it; returns what it returns, None if it was refused in one line."""
    COUNTS[kind] += 1
    try:
        made = case()
    except UserError as error:
        one_line(error)
        return None
    COUNTS[f"{kind} accepted"] += 1
    return made


@drawn(SIZE.plugins)
@given(plugin_calls())
def test_plugins_take_their_arguments_or_say_why_not(call):
    name, arguments = call
    plugin = counted("plugins", lambda: PLUGINS[name](**arguments))
    for argument, value in arguments.items() if plugin is not None else ():
        assert holds(plugin, argument, value), f"{name}: {argument} is not {value!r}"


@drawn(SIZE.strategies)
@given(strategy_names())
def test_strategies_take_their_options_or_say_why_not(name):
    built = counted("strategies", lambda: build(name))
    if built is not None:
        check_meaning(name, built)


def answered(kind, words, request, capsys, tmp_path):
    """Run a command line and check the answer; what is taken must come back the same from its own config.json."""
    COUNTS[kind] += 1
    code, runs, said = run(words, capsys)
    if code:
        assert code == 2 and not runs and said.startswith("error: "), said
        one_line(said.rstrip("\n"))
        return
    COUNTS[f"{kind} accepted"] += 1
    commands.check_meaning(request, runs)
    stored = tmp_path / "config.json"
    stored.write_text(json.dumps(runs[-1].config(), allow_nan=False))
    code, (again,), _ = run(["run", f"--config={stored}", f"--out={tmp_path}"], capsys)
    assert code == 0 and again == replace(runs[-1], data=None)


@drawn(SIZE.commands)
@given(request=commands.asked())
def test_command_lines_are_taken_as_they_are_meant(request, capsys, tmp_path):
    answered("commands", commands.as_words(request, tmp_path), request, capsys, tmp_path)


@drawn(SIZE.files)
@given(request=commands.asked(), style=st.sampled_from(("yaml", "json", "lists")))
def test_configuration_files_are_taken_as_they_are_meant(request, style, capsys, tmp_path):
    words = commands.as_file(request, tmp_path, tmp_path / "asked.yaml", style)
    answered("files", words, request, capsys, tmp_path)


@drawn(SIZE.runs)
@given(name=strategy_names(wild=False))
def test_what_is_taken_can_be_trained(name, tmp_path, capsys):
    settings = ["--model", "mlp-2x8", "--experiences", "2", "--epochs", "1", "--batch-size", "128", "--seeds", "1"]
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    code = main(["run", "split-digits", "--strategies", name, *settings, "--out", str(tmp_path / "out")])
    if code:
        error = capsys.readouterr().err
        assert code == 2 and error.startswith("error: ")
        one_line(error.rstrip("\n"))
        assume(False)
    COUNTS["runs"] += 1
    (result,) = (tmp_path / "out").rglob("result.json")
    assert json.loads(result.read_text())["strategy"] == name
