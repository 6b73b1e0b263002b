"""What studies add to benchmarks: gradient noise, a network that is held, shifted digits, a normalised network."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hyper_hypo_runs import everything, naive, same, stream
from torch import nn

from benchmarks.cli import main
from benchmarks.data import as_inputs, load
from benchmarks.runner import import_modules
from benchmarks.settings import resolve
from benchmarks.streams import BENCHMARKS, StreamSettings, get_benchmark, make_stream
from benchmarks.studies import demon_pruning, get_study
from benchmarks.training import train
from plasticity import find_units, surgery
from plasticity.errors import UserError
from strategies import Context, build_plugins

CONTEXT = Context(nn.Identity, seed=3, epochs=1, batch_size=16, experiences=2)


@pytest.fixture(autouse=True)
def _registered():
    for name in ("dying-units", "hyper-hypo", "demon-pruning"):
        import_modules(list(get_study(name).modules))


# --- gradient noise --------------------------------------------------------------------------------------------


def trained(options: str, seed: int = 3):
    """One epoch of plain SGD with the strategy `gradient-noise`."""
    plugins = build_plugins(f"gradient-noise{options}", replace(CONTEXT, seed=seed))
    strategy = naive("mlp", plugins, kind="sgd", epochs=1)
    with torch.no_grad():
        strategy.model[0].bias[5] = -100.0  # a dead unit
    strategy.train(stream("mlp")[0])
    return strategy


def test_noise_has_the_standard_deviation_that_is_asked_for_and_reaches_dead_units():
    from benchmarks.studies.gradient_noise import add_noise

    parameters = [nn.Parameter(torch.zeros(300, 400)), nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    for parameter in parameters[:2]:
        parameter.grad = torch.zeros_like(parameter)
    parameters[0].grad[:100] = 5.0
    optimizer = torch.optim.SGD(parameters, lr=1)
    before = parameters[0].grad.clone()
    add_noise(optimizer, 0.2, False, lambda device: torch.Generator(device).manual_seed(0))
    noise = parameters[0].grad - before
    assert float(noise.std()) == pytest.approx(0.2, rel=0.02) and abs(float(noise.mean())) < 0.002
    assert float(noise[100:].std()) == pytest.approx(0.2, rel=0.02)
    assert bool(parameters[1].grad.any()) and parameters[2].grad is None


def test_noise_on_live_entries_leaves_dead_units_alone():
    strategy, quiet = trained(":std=0.5:live_only=true"), trained(":std=0")
    before = trained(":std=0.5")
    decay = quiet.model[0].weight[5]  # moved by weight decay alone
    assert torch.equal(strategy.model[0].weight[5], decay)
    assert not torch.equal(before.model[0].weight[5], decay)
    assert not torch.equal(strategy.model[0].weight[4], quiet.model[0].weight[4])


def test_no_noise_is_bit_identical_to_naive_and_seeds_decide():
    plain = naive("mlp", [], kind="sgd", epochs=1)
    with torch.no_grad():
        plain.model[0].bias[5] = -100.0
    plain.train(stream("mlp")[0])
    assert same(everything(trained(":std=0")), everything(plain))
    assert same(everything(trained("")), everything(trained("")))
    assert not same(everything(trained("")), everything(trained("", seed=4)))
    with pytest.raises(UserError, match="std must be at least 0"):
        build_plugins("gradient-noise:std=-1", CONTEXT)


# --- a network that is held ------------------------------------------------------------------------------------


def test_a_held_network_learns_the_first_experience_only():
    held, plain = (naive("convolutional", build_plugins(name, CONTEXT), epochs=2) for name in ("hold", "naive"))
    torch.manual_seed(1)
    plain.train(stream("convolutional")[0])
    first = everything(plain)
    torch.manual_seed(1)
    for experience in stream("convolutional"):
        held.train(experience)
    assert same(everything(held), first)


def test_units_of_a_held_network_are_pruned(tmp_path):
    settings = resolve("digits-turned", "hyper-hypo:mode=prune:units=hyper+hold", 0, model="mlp-1x20", epochs=1)
    plain = replace(settings, strategy="naive+hold")
    pruned, kept = (train(each, tmp_path / "metrics.jsonl") for each in (settings, plain))
    assert pruned["treatments"][0]["pruned"] == 1 and pruned["treatments"][0]["experience"] == 1
    assert pruned["online_accuracy"][1] is None and kept["online_accuracy"][1] is None
    assert pruned["learning_accuracy"][0] == kept["learning_accuracy"][0]
    assert kept["accuracy_before_learning"][1] == kept["learning_accuracy"][1]


# --- shifted digits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shift", ["turned", "faint", "noisy", "moved"])
def test_the_second_experience_has_other_images_in_another_domain(shift):
    benchmark = get_benchmark(f"digits-{shift}")
    streams = [benchmark.build(StreamSettings(seed)) for seed in (0, 0, 1)]
    data = load("digits")
    sets = [[torch.stack([x for x, *_ in e.dataset]) for e in each.train_stream] for each in streams]
    assert [len(x) for x in sets[0]] == [862, 575]
    assert all(torch.equal(one, other) for one, other in zip(sets[0], sets[1], strict=True))
    assert not torch.equal(sets[0][0], sets[2][0])
    labels = [torch.tensor(e.dataset.targets) for e in streams[0].train_stream]
    counts = torch.bincount(torch.cat(labels), minlength=10)
    assert torch.equal(counts, torch.bincount(data.train_y, minlength=10))
    tests = [torch.stack([x for x, *_ in e.dataset]) for e in streams[0].test_stream]
    clean = as_inputs("digits", data.test_x)
    assert torch.equal(tests[0], clean) and tests[1].shape == clean.shape
    assert bool(((tests[1] - clean).abs().amax(1) > 0).all())
    assert float(tests[1].min()) >= 0 and float(tests[1].max()) <= 1


def test_shifts_are_what_they_are_called():
    from benchmarks.studies.shifted_digits import faint, moved, noisy, turned

    source = torch.Generator().manual_seed(0)
    images = torch.rand(3, 1, 8, 8, generator=source)
    assert torch.equal(moved(images, source)[..., 1:], images[..., :-1])
    assert not moved(images, source)[..., 0].any()
    torch.testing.assert_close(turned(images, source, 90.0), images.rot90(1, (2, 3)))
    torch.testing.assert_close(turned(images, source, 0.0), images)
    weak = faint(images, source, 0.25)
    torch.testing.assert_close(weak.mean((1, 2, 3)), images.mean((1, 2, 3)))
    torch.testing.assert_close(weak.std((1, 2, 3)), 0.25 * images.std((1, 2, 3)))
    assert float((noisy(torch.full((50, 1, 8, 8), 0.5), source, 0.1) - 0.5).std()) == pytest.approx(0.1, rel=0.05)


def test_there_is_one_shift_to_a_stream():
    with pytest.raises(UserError, match="digits-noisy has 2 experiences"):
        get_benchmark("digits-noisy").build(StreamSettings(0, 3))


# --- a network with normalisers, and the whole of Demon pruning's study ----------------------------------------


def test_all_units_of_the_network_have_a_scale_of_their_own_and_are_private():
    from benchmarks.models import build_model

    model = build_model("pairs-conv-bn", 10, (3, 32, 32)).eval()
    x = torch.randn(4, 3, 32, 32)
    units = find_units(model, x)
    assert [group.size for group in units] == [16, 32, 32, 128, 128]
    assert all(group.private and group.norm is not None for group in units)
    plain = build_model("pairs-conv", 10, (3, 32, 32))
    assert [group.size for group in find_units(plain, x)] == [16, 32, 32, 128, 128]
    for group in units:
        surgery.silence(model, group, torch.arange(group.size))
    assert torch.equal(model(x), model(torch.randn_like(x)))
    with pytest.raises(UserError, match="at least 17x17"):
        build_model("pairs-conv-bn", 10, (64,))


def test_the_study_of_demon_pruning_on_small_made_up_images(monkeypatch, tmp_path, capsys):
    def images(settings):
        source = torch.Generator().manual_seed(settings.seed)
        y = torch.arange(10).repeat(20)
        x = F.interpolate(torch.eye(10)[y].view(-1, 1, 2, 5), (32, 32)).expand(-1, 3, -1, -1)
        x = x + 0.1 * torch.randn(x.shape, generator=source)
        return make_stream([(x, y)], [(x[:50], y[:50])], "class")

    monkeypatch.setitem(BENCHMARKS, "split-cifar10", replace(BENCHMARKS["split-cifar10"], stream=images))
    monkeypatch.setattr(demon_pruning, "EPOCHS", {"pairs-conv-bn": 3})
    monkeypatch.setattr(demon_pruning, "STRENGTHS", (1e-5, 10.0))
    monkeypatch.setattr("benchmarks.studies.step_time.BLOCKS", 1)
    assert main(["study", "demon-pruning", "--out", str(tmp_path), "--seeds", "1"]) == 0
    capsys.readouterr()
    rows = {(row["strength"], row["mode"]): row for row in json.loads((tmp_path / "study.json").read_text())["rows"]}
    assert set(rows) == {(0, "naive"), *((s, mode) for s in (1e-5, 10) for mode in ("mask", "shrink"))}
    left = {key: row["parameters"]["mean"] for key, row in rows.items()}
    for strength in (1e-5, 10):
        row = rows[strength, "shrink"]
        assert left[strength, "shrink"] == left[strength, "mask"] < left[0, "naive"]
        assert row["weights"]["mean"] == pytest.approx(1 - left[strength, "shrink"] / left[0, "naive"])
        assert 0 < row["units"]["mean"] < 1 and row["step"]["mean"] > 0 and row["time"]["mean"] > 0
        assert row["dead"]["mean"] == 0  # what was dead is gone
