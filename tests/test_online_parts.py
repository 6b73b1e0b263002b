"""Experiences that an online stream shows a few samples at a time: they count as one experience, and as one epoch."""

import pytest
from avalanche.benchmarks.scenarios.online import split_online_stream
from stripping_streams import SIZE, FixedHead, Stripping, everything, run, same, stream

from plasticity.errors import UserError
from plasticity.plugins import (
    AdaptivePlugin,
    ContinualBackpropPlugin,
    DemonPruningPlugin,
    ReDoPlugin,
    SelfNormalizedResetsPlugin,
)

PARTS = 3  # of an experience
STEPWISE = {
    "continual-backprop": lambda **dry: ContinualBackpropPlugin(replacement_rate=0.06, maturity=2, **dry),
    "self-normalized-resets": lambda **dry: SelfNormalizedResetsPlugin(
        maximum_age=16, refresh=4, enough=2, check_every=2, maximum_share=0.2, **dry
    ),
}
EPOCHS = {
    "stripping": lambda: Stripping(every="epoch"),
    "redo": lambda: ReDoPlugin(every="epoch", tau=0.1),
    "demon pruning": lambda: DemonPruningPlugin(total_steps=9),
}


def online(boundaries=True):
    """Three experiences, each in three parts of one mini-batch."""
    return split_online_stream(stream().train_stream, SIZE // PARTS, access_task_boundaries=boundaries, seed=0)


def trained(plugin, boundaries=True):
    return everything(run([plugin], FixedHead, online(boundaries), train_epochs=1))


@pytest.mark.parametrize("method", STEPWISE)
def test_what_acts_after_every_update_reports_once_an_experience(method):
    """Where no boundaries are told, it does so after every part; both do the same to the network."""
    whole, parts = STEPWISE[method](), STEPWISE[method]()
    assert same(trained(whole), trained(parts, boundaries=False))
    assert len(parts.history) == 3 * PARTS and all(entry["samples"] == 8 for entry in parts.history)
    assert [entry["iteration"] for entry in whole.history] == [3, 6, 9]
    assert any(entry["recycled"] for entry in whole.history)
    for entry, start in zip(whole.history, range(0, 3 * PARTS, PARTS), strict=True):
        told = parts.history[start : start + PARTS]
        assert entry["samples"] == SIZE and entry["recycled"] == sum(each["recycled"] for each in told)
        for name in entry["units"]:
            assert set(entry["units"][name]) == {unit for each in told for unit in each["units"].get(name, [])}
    assert "skipped" in whole.history[0]


@pytest.mark.parametrize("method", STEPWISE)
def test_an_experience_that_is_saved_between_its_parts_is_reported_whole(method):
    whole, plugin = STEPWISE[method](), STEPWISE[method]()
    trained(whole)

    def parts():
        for number, part in enumerate(online()):
            if number == 5:  # in the middle of the second experience
                plugin.load_state_dict(plugin.state_dict())
            yield part

    run([plugin], FixedHead, parts(), train_epochs=1)
    assert plugin.history == whole.history


@pytest.mark.parametrize("method", STEPWISE)
def test_a_dry_run_reports_once_an_experience_too(method):
    plugin = STEPWISE[method](dry_run=True)
    trained(plugin)
    assert [(entry["samples"], entry["dry_run"]) for entry in plugin.history] == [(SIZE, True)] * 3


@pytest.mark.parametrize("method", EPOCHS)
def test_an_epoch_is_all_of_an_experience(method):
    """Units are not judged, and not pruned for good, on the first few samples alone."""
    plugin = EPOCHS[method]()
    trained(plugin)
    assert [entry["iteration"] for entry in plugin.history] == [3, 6, 9]
    assert all(entry["samples"] >= SIZE for entry in plugin.history)


def test_units_are_looked_for_after_an_epoch_and_between_experiences():
    plugin = AdaptivePlugin(every="epoch", dead=0.01)
    trained(plugin)
    assert {entry["iteration"] for entry in plugin.history} <= {3, 6, 9}


@pytest.mark.parametrize("method", EPOCHS)
def test_an_epoch_needs_boundaries(method):
    with pytest.raises(UserError, match="tells the boundaries of its experiences, or every= a number of iterations"):
        trained(EPOCHS[method](), boundaries=False)
