"""The defaults and presets that the methods' pages name are those of the code."""

import dataclasses
import inspect
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from benchmarks import gradient_norms, judging, observing, tuning
from benchmarks.studies import demon_pruning, dying_units, hyper_hypo, width_depth
from plasticity import plugins
from plasticity.measures import sample_plasticity
from plasticity.methods.synaptic_stripping import PRESETS as STRIPPING
from plasticity.optim import UPGD
from strategies import builtin, networks

PAGES = Path(__file__).parents[1] / "docs" / "methods"
MAKE = {
    "adaptive": plugins.AdaptivePlugin,
    "continual-backprop": plugins.ContinualBackpropPlugin,
    "dash": plugins.DASHPlugin,
    "demon-pruning": plugins.DemonPruningPlugin,
    "fire": plugins.FIREPlugin,
    "gradient-dormancy": plugins.GradientDormancyPlugin,
    "hare-tortoise": plugins.HareTortoisePlugin,
    "hyper-hypo": plugins.HyperHypoPlugin,
    "l2": plugins.L2Plugin,
    "l2-init": plugins.L2InitPlugin,
    "normalize-and-project": plugins.NormalizeAndProjectPlugin,
    "plasticity-injection": plugins.PlasticityInjectionPlugin,
    "redo": plugins.ReDoPlugin,
    "self-normalized-resets": plugins.SelfNormalizedResetsPlugin,
    "shrink-perturb": plugins.ShrinkPerturbPlugin,
    "shrink-perturb-interpolate": partial(plugins.ShrinkPerturbPlugin, "interpolate"),
    "shrink-perturb-step": partial(plugins.ShrinkPerturbPlugin, "step"),
    "spectral-regularization": plugins.SpectralRegularizationPlugin,
    "upgd": UPGD,
}
ELSEWHERE = {"crelu", "layer-norm", "synaptic-stripping"}  # without such a table
VARIANTS = {  # one rule holds the arguments of three algorithms
    "shrink-perturb": {"decay", "noise", "scale", "strength", "step_every"},
    "shrink-perturb-interpolate": {"shrink", "perturb", "decay", "noise", "scale", "step_every"},
    "shrink-perturb-step": {"shrink", "perturb", "strength", "optimizer_state"},
}
WORDS = {"none": None, "None": None, "off": False, "True": True, "False": False, "the strategy's": None}


def text(page):
    return (PAGES / f"{page}.md").read_text()


def tables(page):
    """Rows of cells of the tables that begin with the word "argument"."""
    found = []
    for block in re.findall(r"(?:^\|.*\n)+", text(page), re.M):
        rows = [[cell.strip() for cell in line.strip().strip("|").split("|")] for line in block.splitlines()]
        if rows[0][0] == "argument":
            found.append([rows[0], *rows[2:]])
    return found


def value(cell):
    """The value that a cell begins with: a number, a word, or text in quotes or backticks."""
    cell = cell.replace("`", "")
    if cell in WORDS:
        return WORDS[cell]
    quoted = re.match(r'"(.*?)"', cell)
    if quoted:
        return quoted[1]
    number = re.match(r"[\d,]+(\.\d+)?(e-?\d+)?", cell)
    assert number, cell
    return float(number[0].replace(",", ""))


def names(cell):
    return re.findall(r"`(\w+)`", cell.partition(" of ")[0].partition(" in ")[0].partition(" before ")[0])


def code(make, name, **named):
    """What an argument is unless it is given: the rule's, else that of the signature."""
    kind = make.func if isinstance(make, partial) else make
    if name == "preset" or kind is UPGD:
        return inspect.signature(kind.__init__).parameters[name].default
    made = make(**named)
    for holder in (getattr(made, "rule", None), made):
        if holder is not None and hasattr(holder, name):
            return getattr(holder, name)
    return inspect.signature(kind.__init__).parameters[name].default


def cells():
    for page, make in MAKE.items():
        for header, *rows in tables(page):
            for row in rows:
                preset = re.fullmatch(r'`preset="(\w+)"`', row[0])
                if preset:  # of a penalty, which has its strength alone
                    yield page, make, "strength", {"preset": preset[1]}, row[1]
                    continue
                for name in names(row[0]):
                    for title, cell in zip(header[1:], row[1:], strict=True):
                        given = re.fullmatch(r'`(?:preset=)?"([\w-]+)"`', title)
                        if title == "default" or given:
                            yield page, make, name, {"preset": given[1]} if given else {}, cell


CELLS = list(cells())


@pytest.mark.parametrize(
    ("make", "name", "named", "cell"),
    [each[1:] for each in CELLS],
    ids=[f"{page}-{name}-{named.get('preset', 'default')}" for page, _, name, named, _ in CELLS],
)
def test_a_default_is_the_one_on_the_page(make, name, named, cell):
    assert code(make, name, **named) == value(cell)


@pytest.mark.parametrize("page", sorted(MAKE))
def test_every_argument_of_a_rule_has_a_row(page):
    rows = {name for table in tables(page) for row in table[1:] for name in names(row[0])}
    make = MAKE[page]
    rule = None if make is UPGD else getattr(make(), "rule", None)
    if make is UPGD:
        wanted = set(inspect.signature(UPGD.__init__).parameters) - {"self", "params"}
    else:
        wanted = {field.name for field in dataclasses.fields(rule)} if rule is not None else set()
    assert wanted - VARIANTS.get(page, set()) - {"variant"} <= rows and rows


def test_every_page_is_held_to_the_code():
    assert {path.stem for path in PAGES.glob("*.md")} == set(MAKE) | ELSEWHERE


STRIPPING_ROWS = {
    "guard": "guard",
    "largest share of a unit's connections that may go": "max_row_sparsity",
    "rounds in one treatment": "rounds",
}


def test_synaptic_stripping():
    """Its page says in words what most settings mean."""
    rows = dict(re.findall(r"^\| ([^|]+?) \| (.+) \|$", text("synaptic-stripping"), re.M))
    for words, name in STRIPPING_ROWS.items():
        for cell, preset in zip(rows[words].split(" | "), ("default", "whitaker2023"), strict=True):
            found = getattr(STRIPPING[preset], name)
            assert found == (cell != "none" if name == "guard" else float(cell)), (words, preset)
    default, theirs = STRIPPING["default"], STRIPPING["whitaker2023"]
    assert "5% quantile" in text("synaptic-stripping") and default.fraction == theirs.fraction == 0.05
    assert "up to 20 rounds" in text("synaptic-stripping")
    assert (default.score, theirs.score) == ("auto", "signed_weight")
    assert (default.fallback, theirs.fallback) == ("zero_bias", "none")
    assert (default.clean_optimizer, theirs.clean_optimizer) == (True, False)
    made = {preset: plugins.SynapticStrippingPlugin(preset) for preset in STRIPPING}
    assert [plugin.every for plugin in made.values()] == ["experience", "epoch"]


def test_strategies_that_are_no_plugins():
    def default(function, name):
        return inspect.signature(function).parameters[name].default

    assert "slope 0.01" in text("layer-norm") and default(networks.leaky_relu, "slope") == 0.01
    assert "the middle of the stream" in text("plasticity-injection")
    assert default(networks.plasticity_injection, "share") == 0.5
    assert "ten times the benchmark's learning" in text("upgd")
    (adam,), (sgd,) = (
        networks.upgd([torch.nn.Parameter(torch.zeros(2))], kind, 0.01).param_groups for kind in ("adam", "sgd")
    )
    assert (adam["lr"], sgd["lr"]) == (0.1, 0.01)
    assert default(builtin.replay, "mem_size") == 2000 and "2,000" in str(builtin.replay.__doc__)


def test_what_runs_are_measured_on():
    page = (PAGES.parent / "measures.md").read_text()
    assert "up to 2,048 training samples" in page and judging.PROBE_SAMPLES == 2048
    assert "on up to 1,024 test samples" in page and observing.PAST_SAMPLES == 1024
    smallest = inspect.signature(sample_plasticity).parameters["smallest"].default
    assert "ε is 1e-8 here" in " ".join(page.split()) and smallest == 1e-8
    assert "every tenth training step" in page and gradient_norms.EVERY == 10
    assert "seeds from 1000 on" in (PAGES.parents[1] / "README.md").read_text() and tuning.FIRST_SEED == 1000


def test_what_studies_take_for_few_and_for_many():
    page = " ".join((PAGES.parent / "studies.md").read_text().split())
    assert "Chosen are the 5% of each layer" in page and hyper_hypo.PERCENT == 5
    assert "at most 0.01 of accuracy" in page and demon_pruning.TOLERATED == 0.01
    assert "at least 5% of their units" in page and width_depth.MANY == 0.05
    assert "at least 90% of the best accuracy" in page and dying_units.LEARNS == 0.9
