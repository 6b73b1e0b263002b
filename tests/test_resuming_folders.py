"""Hidden folders: whose they are, who goes on from them, and that none stays when nobody will."""

import fcntl
import os

import pytest

from benchmarks.resuming.files import CheckpointFiles, has_checkpoint
from benchmarks.resuming.folders import appearing, clear_away

GONE = 2**22 + 1  # no process has a number as large


def left_behind(folder, owner=GONE, checkpoint=True):
    """A hidden folder as a killed process leaves it."""
    hidden = folder.with_name(f".{folder.name}.partial-{owner}")
    hidden.mkdir(parents=True)
    (hidden / ".lock").touch()
    if checkpoint:
        CheckpointFiles(hidden, {}).write([b"state"])
    return hidden


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def complete(folder):
    with appearing(folder) as hidden:
        CheckpointFiles(hidden, {}).remove()
        (hidden / "result.json").touch()


@pytest.mark.parametrize("name", ["seed-0", "with [brackets] and *"])
def test_what_is_left_of_a_run_is_taken_over_and_nothing_of_it_stays(name, tmp_path):
    folder = tmp_path / name
    old, new = left_behind(folder, GONE), left_behind(folder, GONE + 1)
    os.utime(old, (1, 1))
    with appearing(folder) as hidden:
        assert hidden.name.endswith(f"partial-{os.getpid()}") and has_checkpoint(hidden)
        assert not old.exists() and not new.exists()
        CheckpointFiles(hidden, {}).remove()
        (hidden / "result.json").touch()
    assert names(tmp_path) == [name] and names(folder) == ["result.json"]


def test_what_a_process_leaves_that_was_at_work_meanwhile_is_removed_when_the_run_is_complete(tmp_path):
    folder = tmp_path / "seed-0"
    other = tmp_path / "seed-00"  # another run, which somebody may go on with
    kept = left_behind(other)
    with appearing(folder) as hidden:
        left = left_behind(folder)
        (hidden / "result.json").touch()
    assert not left.exists() and has_checkpoint(kept)
    assert names(tmp_path) == [kept.name, "seed-0"]


def test_what_is_left_beside_a_complete_run_is_cleared_away(tmp_path):
    folder = tmp_path / "seed-0"
    complete(folder)
    of_the_complete, of_another = left_behind(folder), left_behind(tmp_path / "seed-1")
    without_checkpoint = left_behind(tmp_path / "seed-2", checkpoint=False)
    at_work = left_behind(folder, GONE + 1)
    with (at_work / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        clear_away(tmp_path)
        assert at_work.exists()
    assert not of_the_complete.exists() and not without_checkpoint.exists()
    assert has_checkpoint(of_another)
    clear_away(tmp_path)
    assert names(tmp_path) == [of_another.name, "seed-0"]


def test_a_block_that_fails_leaves_its_checkpoint_or_nothing(tmp_path):
    folder = tmp_path / "seed-0"
    with pytest.raises(RuntimeError), appearing(folder):
        raise RuntimeError
    assert names(tmp_path) == []
    with pytest.raises(RuntimeError), appearing(folder) as hidden:
        CheckpointFiles(hidden, {}).write([b"state"])
        raise RuntimeError
    assert has_checkpoint(hidden) and not folder.exists()
    complete(folder)
    assert names(tmp_path) == ["seed-0"]
