"""A run that was interrupted ends with the numbers of one that was not, whatever its strategy."""

import json
import random

import pytest
from avalanche.training.plugins import EWCPlugin, SupervisedPlugin
from resuming_runs import StoppedError, Stopping, interrupted, require_same, settings, whole, without_times
from strategy_runs import COUNTS, acting

import plasticity.plugins
from benchmarks.models import build_model
from benchmarks.record import Record
from benchmarks.resuming.keeping import Keeping
from benchmarks.resuming.marks import ChangedError
from benchmarks.resuming.plain import from_bytes, to_bytes
from benchmarks.training import train
from plasticity.plugins import L2InitPlugin
from strategies import STRATEGIES, Context, build_plugins, register


@pytest.fixture
def registered():
    """Registers strategies for a test alone."""
    before = dict(STRATEGIES)
    yield register
    STRATEGIES.clear()
    STRATEGIES.update(before)


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_goes_on_where_it_was(name, tmp_path):
    run = settings(acting(name), epochs=2)
    undisturbed = whole(run, tmp_path / "whole")
    require_same(undisturbed, interrupted(run, tmp_path / "interrupted", within=(1, 30)))
    if name in COUNTS:
        treatments = json.loads(undisturbed[0])["treatments"]
        assert any(entry.get(count, 0) for entry in treatments for count in COUNTS[name])


def test_every_plugin_of_the_library_is_among_the_strategies():
    def network():
        return build_model("mlp-3x128", 10, (1, 8, 8), False)

    context = Context(network, 0, 1, 64, 3, False)
    used = {type(plugin).__name__ for name in STRATEGIES for plugin in build_plugins(name, context)}
    kinds = {name for name in plasticity.plugins.__all__ if isinstance(getattr(plasticity.plugins, name), type)}
    assert kinds - used == {"TreatmentPlugin"}  # what others are made of


@pytest.mark.parametrize(
    ("strategy", "benchmark", "asked"),
    [
        ("replay+l2-init", "split-digits", {"scenario": "class"}),
        ("demon-pruning-shrink", "split-digits", {"scenario": "task"}),
        ("plasticity-injection", "split-digits", {"scenario": "task"}),
        ("plasticity-injection+normalize-and-project", "split-digits", {"scenario": "class"}),
        ("fresh", "split-digits", {"scenario": "class"}),
        ("fresh+continual-backprop:replacement_rate=0.1:maturity=1+l2-init", "split-digits", {"scenario": "class"}),
        ("hare-tortoise+synaptic-stripping", "split-digits", {"optimizer": "sgd", "momentum": 0.9}),
        ("demon-pruning-shrink+hare-tortoise+shrink-perturb-step", "permuted-digits", {}),
        ("continual-backprop:replacement_rate=0.1:maturity=1+demon-pruning", "permuted-digits", {"optimizer": "adamw"}),
    ],
)
def test_heads_that_grow_and_networks_that_shrink(strategy, benchmark, asked, tmp_path):
    run = settings(strategy, benchmark, epochs=3, **asked)
    require_same(whole(run, tmp_path / "whole"), interrupted(run, tmp_path / "interrupted", within=(1, 8)))


@pytest.mark.parametrize(
    "strategy", ["naive", "replay:mem_size=50", "l2-init", "shrink-perturb-step", "continual-backprop", "hare-tortoise"]
)
def test_online_streams_go_on_between_their_parts(strategy, tmp_path):
    run = settings(strategy, "online-split-digits")
    require_same(whole(run, tmp_path / "whole"), interrupted(run, tmp_path / "interrupted", within=(1, 7)))


def test_loaders_that_draw_in_the_middle_of_an_epoch(tmp_path):
    # The memory is smaller than the data, and shuffled anew whenever it is used up; dropout draws in between.
    run = settings("replay:mem_size=100", model="dropping")
    undisturbed = whole(run, tmp_path / "whole")
    within = tmp_path / "within"
    within.mkdir()
    with pytest.raises(StoppedError):
        train(run, within / "metrics.jsonl", keeping=Stopping(within, [], (2, 20)))
    (found, *_) = Stopping(within, []).found()
    assert len(from_bytes(found.parts[1])["draws"]) > 3  # else nothing of this is tested
    require_same(undisturbed, interrupted(run, tmp_path / "interrupted", within=(2, 20), after=3))


def test_a_record_is_saved_number_by_number(tmp_path):
    path, chance = tmp_path / "record.jsonl", random.Random(0)
    record, untrained = Record(path), [None, 0.1, 1 / 3, 0.3]
    record.untrained = untrained
    rows, units, online, treatments = [], [], [], []
    for index in range(4):
        record.before_learning = [None if index == 0 else 1 / 7]
        state = from_bytes(to_bytes(record.state_dict()))
        if index == 2:
            with path.open("a") as file:  # what comes after the saved place does not count
                file.write('{"torn')
            record = Record(path, append=True)  # goes on as well
            record.load_state_dict(state)
        assert record.experiences == index
        tested = {column: chance.random() for column in range(index + 1) if column != 1 or index == 1}
        rows.append([tested.get(column) for column in range(4)])
        units.append({"experience": index, "layers": {"a": {"size": 3, "dead": 1 / 3}}, "effective_rank": None})
        online.append(chance.random())
        treatments.append(
            [(number, {"experience": index, "by": number, "shift": chance.random()}) for number in (1, 0)]
        )
        record.add(online[-1], tested, units[-1], treatments[-1])
    assert record.result([(2, {"last": True})]) == {
        "accuracy_matrix": rows,
        "learning_accuracy": [rows[index][index] for index in range(4)],
        "online_accuracy": online,
        "untrained_accuracy": untrained,
        "accuracy_before_learning": [None, 1 / 7, 1 / 7, 1 / 7],
        "units": units,
        "treatments": [entry for number in (0, 1) for some in treatments for n, entry in some if n == number]
        + [{"last": True}],
    }


def test_a_record_that_has_changed_is_not_gone_on_with(tmp_path):
    record = Record(tmp_path / "record.jsonl")
    record.untrained = record.before_learning = [0.5]
    record.add(0.1, {0: 0.2}, {}, [])
    state = record.state_dict()
    content = record.path.read_bytes()
    for wrong in (content[:-1], content.replace(b"0.2", b"0.3")):
        record.path.write_bytes(wrong)
        with pytest.raises(ChangedError, match="record.jsonl has changed since"):
            Record(record.path, append=True).load_state_dict(state)
    record.path.write_bytes(content + content)
    other = Record(record.path, append=True)
    other.load_state_dict(state)
    assert record.path.read_bytes() == content and other.result()["accuracy_matrix"] == [[0.2]]


def test_what_is_measured_if_asked_for_goes_on(tmp_path):
    run = settings("naive", epochs=1, measure=("sample-plasticity",))
    require_same(whole(run, tmp_path / "whole"), interrupted(run, tmp_path / "interrupted"))


def test_checkpoints_change_nothing(tmp_path):
    run = settings("synaptic-stripping", epochs=1)
    bare = train(run, tmp_path / "metrics.jsonl")
    result, metrics, _ = whole(run, tmp_path / "whole")
    assert without_times(bare) == result and (tmp_path / "metrics.jsonl").read_bytes() == metrics


def test_times_are_those_of_all_attempts(tmp_path):
    run = settings("naive", epochs=1)
    with pytest.raises(StoppedError):
        train(run, tmp_path / "metrics.jsonl", keeping=Stopping(tmp_path, [], (2, 5)))
    (found, *_) = Stopping(tmp_path, []).found()
    within = from_bytes(found.parts[1])["state"]["stopwatch"]
    assert within["process_seconds"] > from_bytes(found.parts[0])["stopwatch"]["process_seconds"] > 0
    result = train(run, tmp_path / "metrics.jsonl", keeping=Stopping(tmp_path, []))
    assert result["processor"]["seconds"] > within["process_seconds"] and result["seconds"] > within["seconds"]


@pytest.mark.parametrize("part", [0, 1])
def test_a_state_that_cannot_be_loaded_is_told_of_and_another_one_used(part, tmp_path):
    run = settings("naive", epochs=1)
    with pytest.raises(StoppedError):
        train(run, tmp_path / "metrics.jsonl", keeping=Stopping(tmp_path, [], (2, 5)))
    files = Stopping(tmp_path, []).files
    (found, *_) = files.read()
    states = [from_bytes(each) for each in found.parts]
    network = (states[0] if part == 0 else states[1]["state"])["network"]
    network["parameters"]["another"] = network["parameters"].pop("head.bias")
    files.write([to_bytes(state) for state in states])  # the one without a mistake is now the one before
    said = []
    keeping = Stopping(tmp_path, said)
    result = train(run, tmp_path / "metrics.jsonl", keeping=keeping)
    words = "a checkpoint is not used: the saved network has no parameter 'head.bias'"
    assert said[-2:] == [words, "goes on after 2 of 3 experiences"]
    require_same(
        whole(run, tmp_path / "whole"),
        (without_times(result), (tmp_path / "metrics.jsonl").read_bytes(), keeping.last()),
    )


class Counting(SupervisedPlugin):
    """Has plain attributes alone."""

    def __init__(self):
        super().__init__()
        self.seen, self.labels = 0, {}

    def after_training_iteration(self, strategy, **kwargs):
        self.seen += 1
        self.labels[int(strategy.mb_y[0])] = self.seen
        next(strategy.model.parameters()).data.add_(self.seen * 1e-5)


class Silent(L2InitPlugin):
    """Says nothing of what it adds."""

    seen = 0


class Spoken(L2InitPlugin):
    """Says what its state is, but nobody knows whether that is all of it within an experience."""

    def state_dict(self):
        return super().state_dict()

    def load_state_dict(self, state):
        super().load_state_dict(state)


def test_plain_attributes_of_others_plugins_are_saved(tmp_path, registered):
    registered("counting", lambda context: [Counting()])
    run = settings("counting", epochs=1, model="mlp-3x128")
    require_same(whole(run, tmp_path / "whole"), interrupted(run, tmp_path / "interrupted"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: EWCPlugin(0.4), "the state of EWCPlugin cannot be saved (its state["),
        (Silent, "Silent inherits state_dict and load_state_dict; give it its own, even if they add nothing"),
    ],
)
def test_a_plugin_whose_state_cannot_be_taken_is_named_and_the_run_goes_on(make, words, tmp_path, registered):
    registered("other", lambda context: [make()])
    run = settings("other", epochs=1, experiences=2)
    said = []
    result = train(run, tmp_path / "metrics.jsonl", keeping=Stopping(tmp_path, said))
    assert len(said) == 1 and said[0].startswith(words) and said[0].endswith(": the run goes on without checkpoints")
    assert result["experiences"] == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "record.jsonl"]


def test_state_dicts_of_others_plugins_are_trusted_after_experiences(tmp_path, registered):
    registered("spoken", lambda context: [Spoken(0.01)])
    run = settings("spoken", epochs=1)
    said = []

    def stop(done):
        if done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):  # within the first experience nothing is saved
        train(run, tmp_path / "metrics.jsonl", stop, keeping=Stopping(tmp_path, said, (0, 5)))
    keeping = Stopping(tmp_path, said)
    result = train(run, tmp_path / "metrics.jsonl", keeping=keeping)
    assert said == ["goes on after 2 of 3 experiences"]
    require_same(
        whole(run, tmp_path / "whole"),
        (without_times(result), (tmp_path / "metrics.jsonl").read_bytes(), keeping.last()),
    )


def test_it_is_time_when_minutes_have_passed(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("benchmarks.resuming.keeping.time.monotonic", lambda: now[0])
    keeping = Stopping(tmp_path, [])
    keeping._on = keeping._within = True
    keeping._boundary = b""
    for minutes, seconds, due in ((1.0, 59.9, False), (1.0, 60.0, True), (0.0, 1e9, False)):
        keeping.minutes, now[0] = minutes, seconds
        assert Keeping._is_time(keeping) is due
