"""How networks compute: as a setting of runs, in their files, and in runs that are stopped and go on."""

import json

import pytest
import torch
from resuming_runs import interrupted, require_same, settings, whole
from torch import nn

from benchmarks import computing
from benchmarks.cli import main
from benchmarks.cli.running import expanded
from benchmarks.comparison.results import read_runs
from benchmarks.computing import Computing
from benchmarks.config import words
from benchmarks.settings import resolve
from plasticity.errors import UserError

OPTIONS = ["seeds", "out", "strategies", "precision", "channels-last", "compile", "device"]
RUN = ["permuted-digits", "--strategies", "naive", "--seeds", "1", "--experiences", "2", "--epochs", "1"]
RUN += ["--model", "mlp-2x16"]


@pytest.fixture
def dynamo():
    """What was compiled is forgotten; and `compile` takes no compiler, only PyTorch's own reading of the network."""
    torch._dynamo.reset()
    compile_ = nn.Module.compile
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.Module, "compile", lambda self, **asked: compile_(self, backend="eager", **asked))
        patch.setattr(computing, "_check_compiler", lambda device: None)
        yield
    torch._dynamo.reset()


def test_what_is_not_asked_for_is_in_no_file():
    plain = resolve("permuted-digits", "naive", 0)
    assert not {"precision", "channels_last", "compile", "computing"} & set(plain.config()["settings"])
    asked = resolve("permuted-digits", "naive", 0, computing=Computing("bfloat16", channels_last=True))
    assert asked.config()["settings"] == {**plain.config()["settings"], "precision": "bfloat16", "channels_last": True}
    assert plain.computing.plugins() == [] and plain.computing.words() == []
    model = nn.Conv2d(3, 4, 3)
    assert plain.computing.network(model) is model and model.weight.is_contiguous()
    assert model._compiled_call_impl is None


def test_networks_compute_as_asked(dynamo):
    model = Computing(channels_last=True, compile=True).network(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()))
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert model._compiled_call_impl is not None
    counts = torch._dynamo.utils.counters
    counts.clear()
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(x), model[1](model[0](x)))
    assert counts["stats"]["unique_graphs"] == 1


@pytest.mark.parametrize(
    ("asked", "device", "reason"),
    [
        (Computing("float8"), "cpu", "unknown precision 'float8': there are float32, bfloat16, float16"),
        (Computing("float16"), "cpu", "on a CPU float16 is several times slower than float32"),
        (Computing("bfloat16"), "meta", "PyTorch has no autocast for device 'meta'"),
    ],
)
def test_what_a_device_cannot_do_is_refused(asked, device, reason):
    with pytest.raises(UserError, match=reason):
        asked.check(device)


def test_without_a_compiler_one_line_says_so(monkeypatch, capsys, tmp_path):
    def fails(function):
        raise RuntimeError(
            "InvalidCxxCompiler: No working C++ compiler found\nin config.cpp.cxx\n\nSet TORCHDYNAMO_X=1"
        )

    monkeypatch.setattr(torch, "compile", fails)
    computing._check_compiler.cache_clear()
    assert main(["run", *RUN, "--out", str(tmp_path / "out"), "--compile"]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "torch.compile does not work here: InvalidCxxCompiler: No working C++" in error
    assert "TORCHDYNAMO" not in error and not (tmp_path / "out").exists()


def test_a_file_says_it_with_true_and_false_and_the_command_line_has_the_last_say(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("benchmark: x\nprecision: bfloat16\nchannels_last: true\ncompile: false\n")
    assert words(path, OPTIONS) == ["x", "--precision=bfloat16", "--channels-last", "--no-compile"]
    assert expanded(["run", "--config", str(path), "--no-channels-last"], OPTIONS)[-1] == "--no-channels-last"
    path.write_text("benchmark: x\nchannels_last: 1\n")
    with pytest.raises(UserError, match="channels_last should be true or false, not 1"):
        words(path, OPTIONS)


def test_runs_say_it_run_again_as_they_are_and_are_not_mixed_with_others(tmp_path, capsys):
    strategies = {"plain": "naive", "half": "l2"}
    for name, more in (("plain", []), ("half", ["--precision", "bfloat16", "--channels-last"])):
        assert main(["run", *RUN, "--out", str(tmp_path / name), "--strategies", strategies[name], *more]) == 0
    folders = {n: tmp_path / n / "permuted-digits" / strategy / "seed-0" for n, strategy in strategies.items()}
    found = {name: json.loads((folder / "config.json").read_text())["settings"] for name, folder in folders.items()}
    assert found["half"] == {**found["plain"], "precision": "bfloat16", "channels_last": True}
    results = {name: json.loads((folder / "result.json").read_text()) for name, folder in folders.items()}
    assert set(results["half"]) == set(results["plain"])
    again = ["run", "--config", str(folders["half"] / "config.json"), "--out", str(tmp_path / "half")]
    capsys.readouterr()
    assert main(again) == 0 and "1 were there already" in capsys.readouterr().out
    assert main([*again, "--no-channels-last"]) == 2
    assert "holds a run with channels_last True, and None is asked for" in capsys.readouterr().err
    page = tmp_path / "page.html"
    assert main(["compare", str(tmp_path / "half"), "--format", "html", "--output", str(page)]) == 0
    assert "bfloat16" in page.read_text() and "channels_last" in page.read_text()
    (tmp_path / "mixed" / "permuted-digits").mkdir(parents=True)
    for name, strategy in strategies.items():
        (tmp_path / "mixed" / "permuted-digits" / strategy).symlink_to(folders[name].parent)
    with pytest.raises(UserError, match="(precision|channels_last) is"):
        read_runs(tmp_path / "mixed")


@pytest.mark.parametrize("strategy", ["naive", "redo:every=3", "shrink-perturb-step"])
def test_stopped_runs_in_half_precision_go_on_where_they_were(strategy, tmp_path):
    run = settings(strategy, epochs=1, computing=Computing("bfloat16"))
    require_same(whole(run, tmp_path / "whole"), interrupted(run, tmp_path / "parts"))


def test_the_scale_of_the_loss_goes_on_where_it_was(tmp_path, monkeypatch):
    """In float16, which a CPU is refused for being slow at it alone; at a scale that overflows in the first steps."""
    monkeypatch.setattr(Computing, "check", lambda self, device: None)
    monkeypatch.setattr("plasticity.loading.precision.MixedPrecisionPlugin.__init__.__kwdefaults__", {"scale": 2.0**22})
    run = settings("l2-init", epochs=1, computing=Computing("float16"), model="mlp-2x16")
    one = whole(run, tmp_path / "whole")
    require_same(one, interrupted(run, tmp_path / "parts", within=(1, 2)))
    scale = one[2]["plugins"][0]["state"]["scale"]
    assert 0 < scale < 2.0**22


def test_stopped_runs_of_compiled_networks_go_on_where_they_were(tmp_path, dynamo):
    run = settings("redo:every=3", epochs=1, computing=Computing(compile=True))
    one = whole(run, tmp_path / "whole")
    require_same(one, interrupted(run, tmp_path / "parts"))
    require_same(one, whole(settings("redo:every=3", epochs=1), tmp_path / "plain"))


@pytest.mark.parametrize("strategy", ["naive", "demon-pruning-shrink"])
def test_stopped_runs_with_channels_last_go_on_where_they_were(strategy, tmp_path, monkeypatch):
    from test_every_benchmark import few_images

    monkeypatch.setattr("benchmarks.streams.builders.load", few_images)
    asked = {"model": "pairs-conv", "epochs": 2, "batch_size": 6, "computing": Computing(channels_last=True)}
    run = settings(strategy, "split-cifar10", **asked)
    one = whole(run, tmp_path / "whole")
    require_same(one, interrupted(run, tmp_path / "parts", within=(1, 1)))
    weights = [each for each in one[2]["network"]["parameters"].values() if each.dim() == 4 and each[0, 0].numel() > 1]
    assert strategy != "naive" or all(w.is_contiguous(memory_format=torch.channels_last) for w in weights)
