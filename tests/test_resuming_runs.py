"""What a run does with checkpoints that cannot be used, and with what it finds in its folder."""

import errno
import json
import os

import pytest
from resuming_runs import StoppedError, settings, without_times

from benchmarks import runner
from benchmarks.resuming import files as files_module
from benchmarks.resuming.files import has_checkpoint
from benchmarks.runner import run_one

EPOCHS = {"epochs": 1, "model": "mlp-3x128"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("whole")
    run_one(settings("redo:every=5", **EPOCHS), out, [], lambda done: None)
    return finished(out)


def finished(out):
    (folder,) = out.rglob("seed-0")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "metrics.jsonl", "result.json"]
    assert list(folder.parent.iterdir()) == [folder]
    result = json.loads((folder / "result.json").read_text())
    return without_times(result), (folder / "metrics.jsonl").read_bytes()


def stop_after(number, error=StoppedError):
    def report(done):
        if done == number:
            raise error

    return report


def interrupted(out, done=2, error=StoppedError):
    """A run that was interrupted after some of its three experiences; returns the hidden folder that it has left."""
    with pytest.raises(error):
        run_one(settings("redo:every=5", **EPOCHS), out, [], stop_after(done, error))
    (hidden,) = out.rglob(".seed-0.partial-*")
    assert has_checkpoint(hidden) and not list(out.rglob("seed-0"))
    return hidden


def go_on(out, **asked):
    run_one(settings("redo:every=5", **{**EPOCHS, **asked}), out, [], lambda done: None)


def latest(hidden):
    return max(hidden.glob("checkpoint-?"), key=lambda path: path.stat().st_mtime_ns)


@pytest.mark.parametrize("error", [StoppedError, KeyboardInterrupt, MemoryError])
def test_what_was_saved_is_kept_whatever_the_end(error, tmp_path, undisturbed, capfd):
    interrupted(tmp_path, error=error)
    go_on(tmp_path)
    assert finished(tmp_path) == undisturbed
    assert capfd.readouterr().err == "permuted-digits/redo:every=5/seed-0: goes on after 2 of 3 experiences\n"


def test_a_run_that_fails_before_anything_was_saved_leaves_nothing(tmp_path):
    with pytest.raises(StoppedError):
        run_one(settings("redo", **EPOCHS), tmp_path, [], stop_after(0))
    assert not list(tmp_path.rglob("*seed-0*"))


@pytest.mark.parametrize("damage", ["torn", "changed", "empty"])
def test_a_damaged_checkpoint_is_told_of_and_the_one_before_is_used(damage, tmp_path, undisturbed, capfd):
    path = latest(interrupted(tmp_path))
    content = path.read_bytes()
    half = len(content) // 2
    changed = content[:half] + bytes([content[half] ^ 1]) + content[half + 1 :]
    path.write_bytes({"torn": content[:half], "changed": changed, "empty": b""}[damage])
    go_on(tmp_path)
    assert finished(tmp_path) == undisturbed
    first, second = capfd.readouterr().err.splitlines()
    assert f"{path.name} is not used: it is " in first and first.endswith("; the other one is")
    assert second.endswith("goes on after 1 of 3 experiences")


def test_with_no_checkpoint_left_the_run_begins_anew(tmp_path, undisturbed, capfd):
    for path in interrupted(tmp_path).glob("checkpoint-?"):
        path.write_bytes(path.read_bytes()[:-1])
    go_on(tmp_path)
    assert finished(tmp_path) == undisturbed
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 2 and all(line.endswith("it is damaged; the run begins anew") for line in lines)


@pytest.mark.parametrize("change", ["cut", "gone"])
def test_metric_values_that_are_not_those_of_the_checkpoint(change, tmp_path, undisturbed, capfd):
    hidden = interrupted(tmp_path)
    metrics = hidden / "metrics.jsonl"
    if change == "cut":
        metrics.write_bytes(metrics.read_bytes()[:-10])  # the checkpoint before fits
    else:
        metrics.unlink()
    go_on(tmp_path)
    assert finished(tmp_path) == undisturbed
    lines = capfd.readouterr().err.splitlines()
    assert lines[0].endswith("a checkpoint is not used: metrics.jsonl has changed since")
    assert lines[-1].endswith("goes on after 1 of 3 experiences" if change == "cut" else "the run begins anew")


def test_a_checkpoint_of_other_settings_is_not_used(tmp_path, capfd):
    interrupted(tmp_path)
    go_on(tmp_path, learning_rate=0.002)
    told = capfd.readouterr().err
    assert "it is of another run or version (learning_rate); the run begins anew" in told and "goes on" not in told
    again = tmp_path / "again"
    go_on(again, learning_rate=0.002)
    assert finished(tmp_path / "permuted-digits") == finished(again)


def test_a_checkpoint_of_other_code_is_not_used(tmp_path, undisturbed, capfd, monkeypatch):
    interrupted(tmp_path)
    monkeypatch.setattr("benchmarks.resuming.versions._OWN", "another")
    go_on(tmp_path)
    assert finished(tmp_path) == undisturbed
    assert "it is of another run or version (code); the run begins anew" in capfd.readouterr().err


def test_a_disk_that_is_full_costs_checkpoints_but_not_the_run(tmp_path, undisturbed, capfd, monkeypatch):
    def full(source, target):
        if "checkpoint" in str(target):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    replace = os.replace
    monkeypatch.setattr(files_module.os, "replace", full)
    go_on(tmp_path)
    assert finished(tmp_path) == undisturbed
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 3 and all("no checkpoint could be written (No space left on device)" in line for line in lines)


@pytest.mark.parametrize("file", ["result.json", "metrics.jsonl"])
def test_a_disk_that_is_full_where_results_go_leaves_nothing_that_looks_finished(
    file, tmp_path, undisturbed, capfd, monkeypatch
):
    hidden = interrupted(tmp_path, done=2)
    with monkeypatch.context() as patched:
        if file == "result.json":
            patched.setattr(runner, "_write_json", _half)
        else:
            patched.setattr("plasticity.metrics.JSONLinesLogger.log_single_metric", _no_room)
        with pytest.raises(OSError, match="full"):
            go_on(tmp_path)
    assert has_checkpoint(hidden) and not list(tmp_path.rglob("seed-0"))
    go_on(tmp_path)
    assert finished(tmp_path) == undisturbed


def _half(path, content):
    path.with_name(f".{path.name}.new").write_text('{"half')
    if path.name == "result.json":
        _no_room()


def _no_room(*arguments):
    raise OSError(errno.ENOSPC, "full")


def test_killed_between_the_result_and_its_name(tmp_path, undisturbed, monkeypatch):
    class KilledError(Exception):
        pass

    remove = files_module.CheckpointFiles.remove

    def killed(files):
        if (files.folder / "result.json").exists():
            raise KilledError
        remove(files)

    monkeypatch.setattr(files_module.CheckpointFiles, "remove", killed)
    with pytest.raises(KilledError):
        go_on(tmp_path)
    monkeypatch.undo()
    (hidden,) = tmp_path.rglob(".seed-0.partial-*")
    assert (hidden / "result.json").exists()
    monkeypatch.setattr("benchmarks.training.train", None)  # nothing is left to do
    go_on(tmp_path)
    assert finished(tmp_path) == undisturbed


def test_another_process_at_work_is_left_alone(tmp_path, undisturbed):
    import fcntl

    hidden = interrupted(tmp_path)
    other = hidden.with_name(".seed-0.partial-1")
    hidden.rename(other)
    with (other / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        go_on(tmp_path)
        assert has_checkpoint(other)
    (folder,) = tmp_path.rglob("seed-0")
    folder.rename(tmp_path / "away")
    go_on(tmp_path)  # now that it is dead
    assert finished(tmp_path / "permuted-digits") == undisturbed
