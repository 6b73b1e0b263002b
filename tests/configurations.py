"""Random configurations of runs, and an independent reading of what each of them means."""

import dataclasses
import inspect
import json
import math

import torch
from hypothesis import strategies as st
from torch import nn

import plasticity.plugins
from plasticity.plugins.base import TreatmentPlugin
from plasticity.plugins.steps import StepPlugin
from strategies import STRATEGIES, Context, build_plugins, change_network, choose_optimizer, parse

# --- values ----------------------------------------------------------------------------------------------------------

ORDINARY = (0, 1, 2, 3, 10, 200, 1000, 0.0, 0.1, 0.25, 0.5, 0.9, 0.999, 1.0, 1.5, 1e-4, True, False, None)
STRANGE = (
    -1,
    -0.5,
    2**31,
    2**63,
    10**30,
    10**400,
    1e308,
    math.nan,
    math.inf,
    -math.inf,
    "",
    "0.1",
    "3",
    "yes",
    "ünï",
    [],
)
NAMES = (
    "experience epoch default none zero young keep reset adapt prune shrink both hyper hypo random experience step all "
    "interpolate whitaker2023 sokar2023 kumar2023 farias2025 dohare2024 before after mean sum frequency bounds auto "
    "reinitialise signed_weight classifier* 0 body nowhere"
).split()
VALUES = st.one_of(
    st.sampled_from(ORDINARY),
    st.sampled_from(ORDINARY),
    st.sampled_from(NAMES),
    st.sampled_from(STRANGE),
    st.integers(-3, 5000),
    st.floats(0, 1),
    st.floats(),
    st.text(max_size=6),
    st.lists(st.sampled_from(NAMES), max_size=2),
)
OBJECTS = st.one_of(VALUES, VALUES, st.sampled_from((object(), b"x", (), {}, {"a": 1}, 1j, (1, "a"), frozenset())))


def text_of(value):
    """Write a value as a user would after `NAME=`."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value)
    except ValueError:  # Python writes no number of so many digits
        return "9" * 400


def meaning(text):
    """Read what stands after `NAME=`: a number, true, false, null, or text."""
    try:
        return json.loads(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return text


# --- plugins ---------------------------------------------------------------------------------------------------------

PLUGINS = {
    name: kind
    for name in plasticity.plugins.__all__
    if inspect.isclass(kind := getattr(plasticity.plugins, name))
    and issubclass(kind, TreatmentPlugin | StepPlugin)
    and kind is not TreatmentPlugin
}


def arguments_of(kind):
    """Name the arguments of a plugin, those of its rule among them."""
    parameters = [each for each in inspect.signature(kind).parameters.values() if each.kind is not each.VAR_KEYWORD]
    found = [each.name for each in parameters]
    rule = getattr(kind(), "rule", None)
    if len(parameters) < len(inspect.signature(kind).parameters):
        found += [field.name for field in dataclasses.fields(rule)]
    return list(dict.fromkeys(found))


ARGUMENTS = {name: arguments_of(kind) for name, kind in PLUGINS.items()}


def defaults_of(kind):
    """Return the defaults of a plugin's arguments by name."""
    found = {name: each.default for name, each in inspect.signature(kind).parameters.items()}
    return {**found, **vars(getattr(kind(), "rule", None) or object.__new__(_Nothing))}


class _Nothing:
    """Has no attributes."""


DEFAULTS = {name: defaults_of(kind) for name, kind in PLUGINS.items()}


def like(default):
    """Draw a value of the kind of a default, which has a good chance to be taken."""
    if isinstance(default, bool):
        return st.booleans()
    if isinstance(default, int):
        return st.integers(1, 500)
    if isinstance(default, float):
        return st.floats(0, 1) | st.sampled_from((0, 1, 0.5))
    if isinstance(default, str):
        return st.sampled_from(sorted({*NAMES, default})) | st.just(default)
    return st.sampled_from((None, 1, 2, 7, "experience", 0.3))


@st.composite
def plugin_calls(draw):
    """Draw the name of a plugin and keyword arguments, one of them perhaps unknown."""
    name = draw(st.sampled_from(sorted(PLUGINS)))
    known = st.sampled_from(ARGUMENTS[name])
    if any(each.kind is each.VAR_KEYWORD for each in inspect.signature(PLUGINS[name]).parameters.values()):
        known = st.one_of(known, known, known, st.sampled_from(("taw", "Every")))  # else Python refuses it
    names = draw(st.lists(known, max_size=3, unique=True))
    fitting = {argument: like(DEFAULTS[name].get(argument)) for argument in names}
    return name, {argument: draw(fitting[argument] if draw(st.integers(0, 3)) else OBJECTS) for argument in names}


def same(left, right):
    """Whether two values are one: of one kind, for True is no 1."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, int | float) and isinstance(right, int | float):
        return left == right or math.isclose(left, right, rel_tol=1e-15)  # a whole number may be kept as a float
    return type(left) is type(right) and left == right


def holds(plugin, name, value):
    """Whether a plugin has an argument as it was given."""
    if name == "seed":
        return torch.equal(plugin._generator_state, torch.Generator().manual_seed(value).get_state())
    if name == "exclude":
        several = [value] if isinstance(value, str | int) else [] if value is None else value
        patterns = [part.strip() for each in several for part in str(each).split("|")]
        return list(plugin.excluded.patterns) == patterns
    if name == "groups":
        return plugin.groups is None if value is None else len(plugin.groups) == len(list(value))
    if name == "head":
        return plugin.head is None if value is None else plugin.head == tuple(value)
    rule = getattr(plugin, "rule", None)
    for owner in (plugin, rule):
        if name in getattr(owner, "__dict__", {}):
            return same(getattr(owner, name), value) or (value is None and name in ("every", "strength"))
    return name in ("preset", "variant", "mode")  # they stand for several values


# --- strategies ------------------------------------------------------------------------------------------------------


def network():
    """A network with hidden units."""
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


CONTEXT = Context(network=network, seed=3, epochs=2, batch_size=8, experiences=20)
UPGD = ("rate", "lr", "beta", "sigma", "weight_decay", "utility", "protect", "preset", "seed")
OF_FUNCTIONS = {
    "replay": ("mem_size",),
    "plasticity-injection": ("share", "exclude", "dry_run"),
    "normalize-and-project": ("layer_norm", "normaliser_decay", "exclude", "dry_run"),
    "leaky-relu": ("slope",),
    "upgd": UPGD,
}


def options_of(name):
    """Name the options of a strategy."""
    if name in OF_FUNCTIONS:
        return OF_FUNCTIONS[name]
    made = build_plugins(name, CONTEXT)
    return ARGUMENTS[type(made[0]).__name__] if made and type(made[0]).__name__ in PLUGINS else ()


OPTIONS = {name: options_of(name) for name in STRATEGIES}


def default_of(strategy, option):
    """Return the default of a strategy's option."""
    if strategy in OF_FUNCTIONS:
        return {"mem_size": 200, "exclude": None, "utility": "", "protect": "", "preset": "", "seed": 0}.get(
            option, 0.5
        )
    made = build_plugins(strategy, CONTEXT) if strategy in STRATEGIES else []
    return DEFAULTS.get(type(made[0]).__name__, {}).get(option) if made else None


@st.composite
def strategy_names(draw, wild=True):
    """Draw the name of a strategy with options, or of several combined, some of them misspelt if they may be wild."""
    parts = []
    for _ in range(draw(st.sampled_from((1, 1, 1, 2)))):
        names = [*OPTIONS, *OPTIONS, *(["reedo", "Naive", "", "../naive"] if wild else [])]
        name = draw(st.sampled_from(names))
        known = [*OPTIONS.get(name, ()), *(["taw", "every"] if wild else [])]
        options = draw(st.lists(st.sampled_from(known), max_size=2, unique=not wild)) if known else []
        texts = []
        for option in options:
            values = VALUES if wild and not draw(st.integers(0, 3)) else like(default_of(name, option))
            texts.append(f"{option}={text_of(draw(values))}")
        parts.append(":".join([name, *texts]))
    return draw(st.sampled_from(("+", "+", "+", "++", ":") if wild else ("+",))).join(parts)


@dataclasses.dataclass
class Built:
    """What a strategy's name is made into."""

    network: nn.Module
    optimizer: torch.optim.Optimizer | None
    plugins: list


def build(name):
    """Make all that a strategy's name stands for."""
    parse(name)
    torch.manual_seed(0)
    changed = change_network(name, network(), (torch.randn(4, 4),))
    return Built(changed, choose_optimizer(name, list(changed.parameters()), "sgd", 0.5), build_plugins(name, CONTEXT))


def check_meaning(name, built):
    """Fail unless all options are what the name says, read once more."""
    plugins = list(built.plugins)
    for part in name.split("+"):
        strategy, *texts = part.split(":")
        options = {text.partition("=")[0]: meaning(text.partition("=")[2]) for text in texts}
        plugin = plugins.pop(0) if OPTIONS[strategy] and strategy not in ("leaky-relu", "upgd") else None
        if strategy == "fresh":
            plugins.pop(0)
        for option, value in options.items():
            assert found(strategy, option, value, options, plugin, built), f"{name}: {option} is not {value!r}"


def found(strategy, option, value, options, plugin, built):
    """Whether an option of a strategy has arrived where it belongs."""
    modules = list(built.network.modules())
    if strategy == "upgd":
        (group,) = built.optimizer.param_groups
        if option == "rate":
            return "lr" in options or group["lr"] == (1 if value is None else value) * 0.5
        return same(built.optimizer._seed if option == "seed" else group[option], value)
    if option == "slope":
        return {each.negative_slope for each in modules if isinstance(each, nn.LeakyReLU)} == {float(value)}
    if option == "layer_norm":
        return any(isinstance(each, nn.LayerNorm) for each in modules) is value
    if option == "mem_size":
        return plugin.storage_policy.max_size == value
    if option == "share":
        return plugin.experience == max(1, int(value * 20))
    return holds(plugin, option, value)
