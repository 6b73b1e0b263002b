"""What a run notes while it trains, against plain loops that do the same the slow way."""

import pytest
import torch
from avalanche.training import Naive
from avalanche.training.plugins import EvaluationPlugin, ReplayPlugin, SupervisedPlugin
from torch import nn

from benchmarks import observing
from benchmarks.evaluating import ExperienceTensors, evaluate, experience_tensors
from benchmarks.models import build_model
from benchmarks.observing import OnlineAccuracyPlugin, PastSamples, Stopwatch, watch_damage
from benchmarks.streams import StreamSettings, get_benchmark, stream_shape
from plasticity.plugins import L2InitPlugin, ReDoPlugin, ShrinkPerturbPlugin, SynapticStrippingPlugin

DEVICE = torch.device("cpu")


def made(benchmark="permuted-digits", experiences=3, plugins=(), **settings):
    """A stream of digits and a strategy for it."""
    found = get_benchmark(benchmark)
    resolved = found.resolve(StreamSettings(0, experiences))
    stream = found.build(resolved)
    torch.manual_seed(0)
    model = build_model("mlp-3x128", *stream_shape(stream, resolved))
    strategy = Naive(
        model=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=5e-3),
        criterion=nn.CrossEntropyLoss(),
        train_epochs=1,
        evaluator=EvaluationPlugin(loggers=[]),
        plugins=list(plugins),
        **{"train_mb_size": 64, **settings},
    )
    return stream, strategy


class SlowOnline(SupervisedPlugin):
    """Asks for every prediction, one after the other."""

    def __init__(self):
        super().__init__()
        self.accuracies = []

    def after_forward(self, strategy, **kwargs):
        right = 0
        for output, label in zip(strategy.mb_output.tolist(), strategy.mb_y.tolist(), strict=True):
            right += output.index(max(output)) == label
        self.accuracies.append(right / len(strategy.mb_y))


@pytest.mark.parametrize("replay", [False, True])
def test_online_accuracy_equals_a_slow_loop(replay):
    quick, slow = OnlineAccuracyPlugin(), SlowOnline()
    stream, strategy = made(plugins=[*([ReplayPlugin(50)] if replay else []), quick, slow], experiences=2)
    assert quick.take() is None
    for experience in stream.train_stream:
        strategy.train(experience)
        strategy.eval(stream.test_stream)  # of no concern
        assert len(slow.accuracies) >= 23  # 1,437 samples, the last mini-batch smaller than the others
        assert quick.take() == pytest.approx(sum(slow.accuracies) / len(slow.accuracies), abs=1e-12)
        slow.accuracies.clear()
    assert quick.take() is None


def test_online_accuracy_is_of_before_the_update():
    plugin = OnlineAccuracyPlugin()
    stream, strategy = made(plugins=[plugin], train_mb_size=2000)
    data = experience_tensors(stream.train_stream[0])
    strategy.model.train()
    before = evaluate(strategy.model, data)
    strategy.train(stream.train_stream[0])
    assert plugin.take() == pytest.approx(before, abs=1e-12) != evaluate(strategy.model, data)


def test_online_accuracy_asks_the_device_for_nothing():
    class Strategy:
        mb_output, mb_y = torch.zeros(8, 3, device="meta"), torch.zeros(8, dtype=torch.int64, device="meta")

    plugin = OnlineAccuracyPlugin()
    plugin.after_forward(Strategy())  # would raise
    with pytest.raises((RuntimeError, NotImplementedError)):
        plugin.take()


def test_stopwatch(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(observing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(observing.time, "process_time", lambda: 2 * now[0])
    stopwatch = Stopwatch(DEVICE)
    now[0] = 1.0
    with stopwatch.running():
        now[0] = 3.0
        with stopwatch.paused():
            now[0] = 7.0
        now[0] = 8.0
    now[0] = 20.0
    with pytest.raises(KeyError), stopwatch.running():
        now[0] = 20.5
        raise KeyError
    assert stopwatch.seconds == 3.5 and stopwatch.process_seconds == 7.0


def test_past_samples_are_equally_many_of_each_experience():
    tests = [
        ExperienceTensors(torch.arange(100.0) + 1000 * i, torch.full((100,), i), torch.full((100,), i))
        for i in range(7)
    ]
    past = PastSamples(tests, limit=60)
    assert past.of(0) is None
    earlier = set()
    for count in (1, 3, 7):
        inputs, targets, tasks = past.of(count)
        assert past.of(count)[0] is inputs
        assert torch.bincount(targets).tolist() == [60 // count] * count and torch.equal(targets, tasks)
        assert torch.equal((inputs // 1000).long(), targets)  # samples and labels stay together
        assert len(set(inputs.tolist())) == len(inputs)
        kept = {value for value in inputs.tolist() if value < 1000}
        assert not earlier or kept < earlier  # of an experience ever fewer of the same
        earlier = kept
        assert sorted(kept) != list(range(len(kept)))  # in an order of their own
    few = PastSamples([ExperienceTensors(*part[:2], None) for part in tests], limit=3)
    assert few.of(7).targets.tolist() == [4, 5, 6] and few.of(7).tasks is None
    assert len(PastSamples(tests, limit=10**6).of(7).targets) == 700


class Damage(SupervisedPlugin):
    """Measures at the borders of what the plugins between two of these do before an experience."""

    def __init__(self, tests):
        super().__init__()
        self.tests = tests
        self.found = []

    def before_training_exp(self, strategy, **kwargs):
        past = self.tests[: strategy.experience.current_experience]
        self.found.append([evaluate(strategy.model, test) for test in past])


@pytest.mark.parametrize("benchmark", ["permuted-digits", "split-digits"])
@pytest.mark.parametrize("make", [SynapticStrippingPlugin, ShrinkPerturbPlugin])
def test_damage_is_the_fall_of_accuracy_on_what_was_learned(benchmark, make):
    plugin = make()
    stream, strategy = made(benchmark)
    tests = [experience_tensors(experience) for experience in stream.test_stream]
    before, after = Damage(tests), Damage(tests)
    strategy.plugins[:0] = [before, plugin, after]
    watch_damage([plugin], PastSamples(tests, limit=10**6), Stopwatch(DEVICE))
    rows = []
    for experience in stream.train_stream:
        strategy.train(experience)
        rows.append([evaluate(strategy.model, test) for test in tests[: len(rows) + 1]])
    assert [entry["experience"] for entry in plugin.history] == [1, 2]
    for number, entry in enumerate(plugin.history, start=1):
        sizes = [len(test.targets) for test in tests[:number]]

        def mean(accuracies, sizes=sizes):
            right = sum(accuracy * size for accuracy, size in zip(accuracies, sizes, strict=True))
            return right / sum(sizes)

        assert entry["accuracy_before"] == pytest.approx(mean(before.found[number]))
        assert entry["accuracy_before"] == pytest.approx(mean(rows[number - 1]))  # nothing happens in between
        assert entry["accuracy_after"] == pytest.approx(mean(after.found[number]))
    if make is ShrinkPerturbPlugin:
        assert plugin.history[-1]["accuracy_after"] != plugin.history[-1]["accuracy_before"]


def test_damage_of_treatments_within_an_experience():
    plugin = ReDoPlugin(every=10, tau=1.0)
    stream, strategy = made(plugins=[plugin], experiences=2)
    watch_damage(strategy.plugins, PastSamples([experience_tensors(e) for e in stream.test_stream]), Stopwatch(DEVICE))
    for experience in stream.train_stream:
        strategy.train(experience)
    in_first, *_, last = plugin.history
    assert in_first["experience"] == 0 and "accuracy_before" not in in_first  # nothing was learned before
    assert last["experience"] == 1 and 0 <= last["accuracy_after"] <= 1


class Activity(SupervisedPlugin):
    """Counts, unit by unit, how often it fires on given inputs, before an experience."""

    def __init__(self):
        super().__init__()
        self.found = []

    def before_training_exp(self, strategy, **kwargs):
        counts, seen = {}, self.inputs() if strategy.experience.current_experience else []
        hidden = seen
        for name, layer in strategy.model.trunk.named_children():
            if len(hidden) and isinstance(layer, nn.Linear):
                hidden = layer(hidden).relu().detach()
                shares = [sum(value > 0 for value in unit) / len(unit) for unit in hidden.T.tolist()]
                counts[f"trunk.{name}"] = [sum(min(int(20 * s + 1e-9), 19) == b for s in shares) for b in range(20)]
        self.found.append(counts)


def test_activity_before_and_after_the_first_treatment_of_an_experience():
    plugin = SynapticStrippingPlugin(probe_samples=300)
    before, after = Activity(), Activity()
    before.inputs = after.inputs = lambda: torch.cat([batch[0] for batch in plugin._recent.batches()])
    stream, strategy = made(plugins=[before, plugin, after])
    watch_damage([plugin], PastSamples([experience_tensors(e) for e in stream.test_stream]), Stopwatch(DEVICE))
    for experience in stream.train_stream:
        strategy.train(experience)
    assert len(plugin.history) == 2
    for number, entry in enumerate(plugin.history, start=1):
        assert entry["activity_before"] == before.found[number] and entry["activity_after"] == after.found[number]
        assert all(sum(counts) == 128 for counts in entry["activity_before"].values())
    assert plugin.history[-1]["activity_before"] != plugin.history[-1]["activity_after"]


def test_activity_is_noted_once_in_an_experience():
    plugin = ReDoPlugin(every=10, tau=1.0)
    stream, strategy = made(plugins=[plugin], experiences=2)
    watch_damage([plugin], PastSamples([experience_tensors(e) for e in stream.test_stream]), Stopwatch(DEVICE))
    for experience in stream.train_stream:
        strategy.train(experience)
    noted = [entry["experience"] for entry in plugin.history if "activity_before" in entry]
    assert noted == [0, 1] and len(plugin.history) > 2


def test_watching_damage_changes_nothing_else_and_is_not_timed(monkeypatch):
    def trained(watched):
        plugins = [SynapticStrippingPlugin(), ReDoPlugin(every=10), L2InitPlugin()]
        stream, strategy = made(plugins=plugins)
        stopwatch = Stopwatch(DEVICE)
        if watched:
            watch_damage(plugins, PastSamples([experience_tensors(e) for e in stream.test_stream]), stopwatch)
        for experience in stream.train_stream:
            strategy.train(experience)
        histories = [
            [
                {k: v for k, v in entry.items() if not k.startswith(("accuracy_", "activity_"))}
                for entry in plugin.history
            ]
            for plugin in plugins
        ]
        return strategy.model.state_dict(), histories, stopwatch.seconds

    weights, histories, _ = trained(False)
    others, same, seconds = trained(True)
    assert histories == same and all(torch.equal(weights[name], others[name]) for name in weights)
    assert seconds < 0  # the watch was never running, only paused
