"""Random command lines and configuration files of `run`, and an independent reading of what they ask for."""

import json
import re
from unittest import mock

import torch
import yaml
from configurations import strategy_names, text_of
from hypothesis import strategies as st

from benchmarks.cli import main
from benchmarks.models import build_model

COUNT = st.integers(1, 9), st.sampled_from((0, -1, 2**40, 2**64, 1.5, 10**400, True, "x", ""))
NUMBER = st.floats(1e-6, 0.9), st.sampled_from((0, 1, 1e-3, "1e-2", -1, 1e308, float("nan"), float("inf"), "x"))


def named(*names):
    """Draw one of some names; or something else."""
    return st.sampled_from(names), st.sampled_from((*names, names[0].upper(), names[-1][:-1], "", "ünï", 3))


BENCHMARK = named("split-digits", "permuted-digits", "online-split-digits", "random-label-mnist", "split-mnist")
SEEDS = st.sampled_from((1, 2, 3, "4-6", "0-0")), st.sampled_from(("5-3", "-1", 0, "x", "9" * 30, 10**7, "1-"))
OPTIONS = {
    "experiences": COUNT,
    "epochs": COUNT,
    "batch_size": COUNT,
    "threads": COUNT,
    "evaluate": COUNT,
    "jobs": COUNT,
    "learning_rate": NUMBER,
    "weight_decay": NUMBER,
    "momentum": NUMBER,
    "checkpoint_minutes": NUMBER,
    "scenario": named("class", "task", "domain"),
    "optimizer": named("sgd", "adam", "adamw"),
    "model": named("mlp-2x8", "mlp-3x128", "slim-resnet18"),
    "device": (st.just("cpu"), st.sampled_from(("meta", "cuda:99", "cpu:x", "", "CPU"))),
    "precision": named("float32", "bfloat16"),
    "measure": named("curvature", "sample-plasticity", "curvature,sample-plasticity"),
    "data": (st.just("/nonexistent"), st.sampled_from(("ünï", ""))),
}
"""Draws what makes sense, in most cases; and what does not."""
READ = {
    **dict.fromkeys(("experiences", "epochs", "batch_size", "threads", "evaluate"), int),
    **dict.fromkeys(("learning_rate", "weight_decay", "momentum"), float),
    **dict.fromkeys(("scenario", "optimizer", "model", "device"), str),
    "measure": lambda text: tuple(sorted(set(text.split(",")) - {""})),
}
"""How a text is read, where a run has an attribute of that name."""


@st.composite
def asked(draw):
    """Draw what a run is asked for, by key: benchmark, strategies, seeds, and some of the options."""
    wild = draw(st.integers(0, 2)) == 0
    simple = st.sampled_from(("naive", "redo", "replay+l2-init", "redo:tau=0.2", "fresh"))
    names = draw(st.lists(st.sampled_from(sorted(OPTIONS)), max_size=4, unique=True))
    found = {
        "benchmark": draw(BENCHMARK[wild]),
        "strategies": ",".join(draw(st.lists(simple | strategy_names(wild=wild), min_size=1, max_size=3))),
        "seeds": draw(SEEDS[wild and draw(st.booleans())]),
    }
    found.update({name: draw(OPTIONS[name][wild and draw(st.booleans())]) for name in names})
    if "momentum" in found and not wild:
        found["optimizer"] = "sgd"
    if wild and not draw(st.integers(0, 4)):
        found.pop(draw(st.sampled_from(sorted(found))))
    if wild and not draw(st.integers(0, 4)):
        found[draw(st.sampled_from(("epoch", "lerning_rate", "Seeds", "out_", "3")))] = 1
    return found


def as_words(request, out):
    """Write a request as a command line."""
    given = {key: text_of(value) for key, value in request.items()}
    first = [given.pop("benchmark")] if "benchmark" in given else []
    return ["run", *first, *(f"--{key.replace('_', '-')}={text}" for key, text in given.items()), f"--out={out}"]


def as_file(request, out, path, style):
    """Write a request as a file, YAML or JSON, and return the command line that names it."""
    content = {**request, "out": str(out)}
    if style == "lists":  # as in the documentation: options by name
        content["strategies"] = [_as_mapping(name) for name in request.get("strategies", "").split(",")]
    if style == "json":
        path.write_text(json.dumps(content))
    else:
        path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=style == "lists"), encoding="utf-8")
    return ["run", f"--config={path}"]


def _as_mapping(name):
    strategy, *options = name.split(":")
    if not options or "+" in name or not all(re.fullmatch(r"\w+=[a-z0-9.]+", option) for option in options):
        return name
    if len({option.partition("=")[0] for option in options}) < len(options):
        return name
    return {strategy: {key: yaml.safe_load(text) for key, _, text in (option.partition("=") for option in options)}}


def run(words, capsys):
    """Run a command line but for the training; returns the exit code, the settings of its runs, and what it says."""
    seen = []

    def instead(runs, *rest):
        for each in runs:
            with torch.device("meta"):
                build_model(each.model, 10, (1, 8, 8))
        seen.extend(runs)
        return len(runs)

    capsys.readouterr()
    with mock.patch("benchmarks.cli.running.run_all", instead):
        code = main(words)
    return code, seen, capsys.readouterr().err


def check_meaning(request, runs):
    """Fail unless runs are what was asked for, read once more."""
    first, dash, last = str(request["seeds"]).partition("-")
    seeds = range(int(first), int(last) + 1) if dash else range(int(first))
    names = list(dict.fromkeys(name for name in request["strategies"].split(",") if name))
    assert [(each.strategy, each.seed) for each in runs] == [(name, seed) for name in names for seed in seeds]
    for each in runs:
        assert each.benchmark == request["benchmark"]
        for key in READ.keys() & request.keys():
            assert getattr(each, key) == READ[key](text_of(request[key])), key
        if "precision" in request:
            assert each.computing.precision == request["precision"]
