"""Checkpoint files that are torn, foreign, of another version, or that the disk has no room for."""

import errno
import json
import os
import pickle
import random

import pytest
import torch

from benchmarks.resuming import files as module
from benchmarks.resuming.files import CheckpointFiles, has_checkpoint
from benchmarks.resuming.plain import NotPlainError, UnreadableError, from_bytes, to_bytes

BELONGS = {"benchmark": "one", "settings": {"epochs": 2, "model": "mlp"}, "environment": {"torch": "2"}}


def checkpoints(folder, **other):
    return CheckpointFiles(folder, {**BELONGS, **other})


def written(folder, number=3):
    """Write checkpoints 0, 1, ... and return the files' names, the latest first."""
    files = checkpoints(folder)
    for each in range(number):
        files.write([f"boundary {each}".encode(), f"within {each}".encode()])
    names = sorted((path.name for path in folder.iterdir()), key=lambda name: (folder / name).stat().st_mtime_ns)
    return names[::-1]


def read(files):
    return [(found.number, [part.decode() for part in found.parts]) for found in files.read()]


def test_the_latest_two_are_kept_and_read_the_latest_first(tmp_path):
    assert read(checkpoints(tmp_path)) == [] and not has_checkpoint(tmp_path)
    for number in range(1, 5):
        written(tmp_path, number)
        files = checkpoints(tmp_path)
        expected = [(each, [f"boundary {each}", f"within {each}"]) for each in range(number)][::-1][:2]
        assert read(files) == expected and files.problems == []
        assert len(list(tmp_path.iterdir())) == min(number, 2)
        files.write([b"next"])
        assert read(checkpoints(tmp_path)) == [(number, ["next"]), expected[0]]
        files.remove()
        assert list(tmp_path.iterdir()) == []


def test_a_file_that_is_cut_or_changed_anywhere_is_not_used_and_the_other_one_is(tmp_path):
    latest, before = written(tmp_path)
    content = (tmp_path / latest).read_bytes()
    changes = [content[:length] for length in range(len(content))]
    for place in range(len(content)):
        changed = bytearray(content)
        changed[place] ^= 1 << random.Random(place).randrange(8)
        changes.append(bytes(changed))
    changes.append(content + b"x")
    for changed in changes:
        (tmp_path / latest).write_bytes(changed)
        files = checkpoints(tmp_path)
        assert read(files) == [(1, ["boundary 1", "within 1"])]
        assert len(files.problems) == 1 and files.problems[0].startswith(f"{latest} is not used: ")
    files.write([b"2 again"])  # takes the place of the damaged one
    assert (tmp_path / before).exists() and read(checkpoints(tmp_path))[0] == (2, ["2 again"])


@pytest.mark.parametrize(
    ("other", "named"),
    [
        ({"settings": {"epochs": 3, "model": "mlp"}}, "epochs"),
        ({"environment": {"torch": "3"}}, "torch"),
        ({"code": "abc"}, "code"),
        ({"settings": {"epochs": 2}}, "model"),
    ],
)
def test_checkpoints_of_another_run_or_version_are_not_used(other, named, tmp_path):
    written(tmp_path)
    files = checkpoints(tmp_path, **other)
    assert read(files) == []
    assert len(files.problems) == 2
    assert all(problem.endswith(f"it is of another run or version ({named})") for problem in files.problems)


def test_another_format_is_not_used(tmp_path, monkeypatch):
    written(tmp_path)
    monkeypatch.setattr(module, "FORMAT", module.FORMAT + 1)
    files = checkpoints(tmp_path)
    assert read(files) == [] and "(format)" in files.problems[0]


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_checkpoints_that_were_there(call, tmp_path, monkeypatch):
    written(tmp_path)
    files = checkpoints(tmp_path)
    before = read(files)

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if call == "write":
        import resource

        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # files cannot get longer: a write fails half-way
        try:
            with pytest.raises(OSError, match="too large"):
                files.write([b"x" * 5000])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    else:
        monkeypatch.setattr(module.os, call, full)
        with pytest.raises(OSError, match="No space left"):
            files.write([b"x" * 5000])
        monkeypatch.undo()
    assert read(checkpoints(tmp_path)) == before and len(list(tmp_path.iterdir())) == 2
    files.write([b"y"])
    assert read(checkpoints(tmp_path))[0] == (3, ["y"])


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_nothing_of_a_strangers_file_is_executed(tmp_path):
    trace = tmp_path / "trace"
    bait = {"plain": pickle.dumps(Evil(trace)), "torch": None}
    torch.save({"state": Evil(trace)}, tmp_path / "evil.pt")
    bait["torch"] = (tmp_path / "evil.pt").read_bytes()
    for content in bait.values():
        with pytest.raises(UnreadableError):
            from_bytes(content)
    assert not trace.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert trace.exists()  # the bait is good


def test_bytes_hold_plain_states_and_say_where_something_else_is():
    big = torch.arange(1000.0)
    state = {
        "numbers": [1, 2.5, True, None, "text", b"bytes", float("inf")],
        ("a", 1): {"set": {1, 2}, "view": big[10:12], "bool": torch.tensor([True])},
        3: (big.double().sum(), [[]], {}),
    }
    found = from_bytes(to_bytes(state))
    assert str(found) == str(state) and found[("a", 1)]["set"] == {1, 2} and type(found[3]) is tuple
    assert len(to_bytes(big[:2])) < 2000  # not the memory around it
    parameter = torch.nn.Parameter(torch.ones(2))
    assert type(from_bytes(to_bytes(parameter))) is torch.Tensor
    for wrong, where in (({"a": [1, object()]}, r"state\['a'\]\[1\] is a object"), ({"f": len}, "builtin_function")):
        with pytest.raises(NotPlainError, match=where):
            to_bytes(wrong)


def test_what_is_no_state_is_an_error():
    good = to_bytes({"a": torch.ones(100)})
    for content in (b"", b"x", good[:-30], good[:200], json.dumps({}).encode()):
        with pytest.raises(UnreadableError):
            from_bytes(content)
