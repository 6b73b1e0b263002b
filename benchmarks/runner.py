"""Run benchmarks: each run once, each in a folder that appears only when the run is complete."""

import json
import multiprocessing
import os
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from benchmarks.importing import RUNNING, import_uncollected
from benchmarks.progress import Progress
from benchmarks.settings import FORMAT, RunSettings
from benchmarks.workers import workers
from plasticity.errors import UserError

CHECKPOINT_MINUTES = 10.0


class RunError(RuntimeError):
    """A run that failed through no mistake in what was asked for."""


def run_all(
    runs: list[RunSettings],
    out: Path,
    jobs: int,
    modules: list[str],
    progress: Progress,
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> int:
    """Do the runs that are not done yet.

    Args:
        runs: What to run.
        out: Folder of all results.
        jobs: How many runs at a time, each in a process of its own.
        modules: Modules to import first in each process; they register what the runs need.
        progress: Shows how far the runs are.
        checkpoint_minutes: How long a run goes on within an experience without a checkpoint; 0: always to its end.

    Returns:
        How many runs were done, the ones found finished left out.

    Raises:
        UserError: If a run is impossible, or there is a finished one with other settings in its place.
    """
    todo = [run for run in runs if not _finished(run, out)]
    processes = None
    if jobs > 1 and len(todo) > 1:
        processes = workers(all(run.device == "cpu" for run in todo), max(run.threads for run in todo))
    if todo:
        import_uncollected(*RUNNING)
        from benchmarks.training import check

        check(todo)
    for run in todo:
        _prepare(out / run.folder.parent)
    with progress:
        progress.found(len(runs) - len(todo), len(runs))
        if processes is None:
            for run in todo:
                report = partial(progress.advance, run)
                progress.finish(run, run_one(run, out, modules, report, checkpoint_minutes))
        else:
            _run_parallel(todo, out, jobs, modules, progress, checkpoint_minutes, processes)
    return len(todo)


def run_one(
    run: RunSettings,
    out: Path,
    modules: list[str],
    report: Callable[[int], None],
    checkpoint_minutes: float = CHECKPOINT_MINUTES,
) -> float:
    """Do one run, or what is left of it; its folder appears by one rename when it is complete.

    Args:
        run: What to run.
        out: Folder of all results.
        modules: Modules to import first.
        report: Told the number of finished experiences.
        checkpoint_minutes: How long to go on within an experience without a checkpoint; 0: always to its end.

    Returns:
        Seconds of training.
    """
    import_modules(modules)
    from benchmarks.record import NAME as RECORD
    from benchmarks.resuming.files import CheckpointFiles
    from benchmarks.resuming.folders import appearing
    from benchmarks.resuming.keeping import Keeping
    from benchmarks.resuming.versions import belongs
    from benchmarks.training import train

    def tell(text: str) -> None:
        print(f"{run.folder.as_posix()}: {text}", file=sys.stderr, flush=True)

    with appearing(out / run.folder) as folder, _without_warnings_of_avalanche():
        files = CheckpointFiles(folder, belongs(run, modules))
        result = _complete(folder, run)
        if result is None:
            _write_json(folder / "config.json", run.config())
            result = train(run, folder / "metrics.jsonl", report, Keeping(files, checkpoint_minutes, tell))
            _write_json(folder / "result.json", result)
        files.remove()
        (folder / RECORD).unlink(missing_ok=True)
    return float(result["seconds"])


def _complete(folder: Path, run: RunSettings) -> dict[str, Any] | None:
    """Return the result of a run that was complete when its process was killed, but for its name."""
    path = folder / "result.json"
    try:
        found = json.loads((folder / "config.json").read_text())["settings"]
        result: dict[str, Any] = json.loads(path.read_text())
        if found == run.config()["settings"]:
            return result
    except (OSError, ValueError, KeyError, TypeError):
        pass
    path.unlink(missing_ok=True)
    return None


def import_modules(modules: list[str]) -> None:
    """Import a user's modules, which register models, streams or strategies.

    Raises:
        UserError: If one cannot be imported.
    """
    import importlib

    if "" not in sys.path and os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    for name in modules:
        try:
            importlib.import_module(name)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"cannot import {name!r}: {type(error).__name__}: {error}") from error


def _finished(run: RunSettings, out: Path) -> bool:
    """Say whether a run is there; one with other settings in its place is an error, not a result."""
    folder = out / run.folder
    if not folder.exists():
        return False
    try:
        config = json.loads((folder / "config.json").read_text())
        found = dict(config["settings"])
        format_of = config.get("format")
        json.loads((folder / "result.json").read_text())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise UserError(f"{folder} is not a finished run; remove it, or choose another --out") from None
    if format_of != FORMAT:
        raise UserError(f"{folder} was written by another version; remove it, or choose another --out")
    asked = run.config()["settings"]
    different = sorted(name for name in {*found, *asked} if found.get(name) != asked.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"{folder} holds a run with {name} {found.get(name)}, and {asked.get(name)} is asked for; "
            "choose another --out, or remove it"
        )
    return True


def _prepare(folder: Path) -> None:
    """Make the folder of a strategy and clear away what interrupted runs have left in it and nobody can go on from."""
    from benchmarks.resuming.folders import clear_away

    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {folder}: {error.strerror}") from None
    clear_away(folder)


@contextmanager
def _without_warnings_of_avalanche() -> Iterator[None]:
    """Keep quiet about how Avalanche calls itself; it puts its own filters in the way of ordinary ones."""
    show = warnings.showwarning

    def show_others(message: Any, category: Any, filename: str, *rest: Any) -> None:
        if "avalanche" not in Path(filename).parts:
            show(message, category, filename, *rest)

    with warnings.catch_warnings():
        warnings.showwarning = show_others  # type: ignore[assignment]  # that is how it is replaced
        yield


def _write_json(path: Path, content: dict[str, Any]) -> None:
    new = path.with_name(f".{path.name}.new")
    with new.open("w") as file:
        json.dump(content, file, indent=1, allow_nan=False)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(new, path)


_reports: Any = None


def _start_worker(reports: Any) -> None:
    global _reports
    _reports = reports
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted, and ends its workers
    threading.Thread(target=_end_with, args=(multiprocessing.parent_process(),), daemon=True).start()


def _end_with(parent: Any) -> None:
    """End this process with the one that asked for it, which may be killed without a chance to end its workers."""
    parent.join()
    os._exit(1)


def _work(run: RunSettings, out: Path, modules: list[str], checkpoint_minutes: float) -> float:
    return run_one(run, out, modules, lambda done: _reports.put((run.folder.as_posix(), done)), checkpoint_minutes)


def _run_parallel(
    todo: list[RunSettings],
    out: Path,
    jobs: int,
    modules: list[str],
    progress: Progress,
    checkpoint_minutes: float,
    context: BaseContext,
) -> None:
    reports = context.SimpleQueue()
    by_folder = {run.folder.as_posix(): run for run in todo}
    pool = ProcessPoolExecutor(min(jobs, len(todo)), context, _start_worker, (reports,))
    futures: dict[Future[float], RunSettings] = {
        pool.submit(_work, run, out, modules, checkpoint_minutes): run for run in todo
    }
    pending = set(futures)
    try:
        while pending:
            done, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
            while not reports.empty():
                name, experience = reports.get()
                progress.advance(by_folder[name], experience)
            for future in done:
                progress.finish(futures[future], future.result())
    except BrokenProcessPool:
        raise RunError(
            "the process of a run ended by itself (killed, or out of memory); finished runs are kept"
        ) from None
    except BaseException:
        for process in list((pool._processes or {}).values()):
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
