"""Costs of processes: the same runs, one after the other and at a time, and plain processes beside them."""

import subprocess

import pytest
import torch

from benchmarks.computing import Computing
from benchmarks.cost import processes


@pytest.fixture(autouse=True)
def _keep_threads():
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


class Pipe:
    """Stands for a process that takes a second for each message, at the same time as others."""

    now, done = 0.0, 0.0

    def send(self, message):
        self.ready = Pipe.now + 1

    def recv(self):
        Pipe.now = max(Pipe.now, self.ready)


def test_processes_are_measured_by_whole_runs_and_by_what_plain_ones_take(monkeypatch):
    asked, made = [], []

    class Context:
        def __enter__(self):
            return [Pipe(), Pipe(), Pipe()]

        def __exit__(self, *error):
            made.append("ended")

    def pretend(*arguments):
        made.append(arguments)
        return Context()

    monkeypatch.setattr(processes, "plain_processes", pretend)
    monkeypatch.setattr("time.perf_counter", lambda: Pipe.now)

    def run(words):
        asked.append(words)
        Pipe.now += 12 / int(words[-1])

    line, plain = processes.measure(2, 3, experiences=4, run=run)
    assert line.case == "permuted-digits, 3 runs of 4 experiences" and line.ratio.rounds == 2
    assert line.ratio.median == plain.ratio.median == pytest.approx(1 / 3)
    assert plain.what == "3 plain processes" and made == [(3, 4, "cpu", Computing()), "ended"]
    assert [words[-1] for words in asked] == ["1", "3", "3", "1"]
    assert all(words[:6] == ["run", "permuted-digits", "--strategies", "naive", "--seeds", "3"] for words in asked)
    assert all(words[6:8] == ["--experiences", "4"] for words in asked)


def test_a_command_that_fails_is_no_time():
    with pytest.raises(subprocess.CalledProcessError):
        processes._command(["run", "permuted-digits", "--no-such-option"])


def test_plain_processes_answer_each_message_and_end():
    with processes.plain_processes(1, 1, "cpu", Computing()) as pipes:
        assert [processes._seconds(pipes) > 0 for _ in range(2)] == [True, True]
        assert not pipes[0].poll(0)
    assert pipes[0].closed


def test_a_plain_process_trains_the_network_of_the_run(monkeypatch):
    """With as many steps as a run of naive takes, on the same data."""
    taken = []

    class Counted(processes.BareSteps):
        def step(self, inputs, labels):
            taken.append((self.model, self.optimizer, inputs.shape, len(labels)))
            super().step(inputs, labels)

    monkeypatch.setattr(processes, "BareSteps", Counted)
    train = processes._training(0, "cpu", Computing())
    train(2)
    from benchmarks.settings import resolve

    run = resolve(processes.BENCHMARK, "naive", 0)
    count = sum(size for *_, size in taken) // (2 * run.epochs)
    assert len(taken) == 2 * run.epochs * -(-count // run.batch_size) and count > 1000
    model, optimizer, shape, size = taken[0]
    assert size == run.batch_size and shape[1:].numel() == 64
    assert type(optimizer) is torch.optim.Adam and run.optimizer == "adam"
    assert optimizer.defaults["lr"] == run.learning_rate and optimizer.defaults["fused"]
    assert run.model == "mlp-3x128" and sum(p.numel() for p in model.parameters()) == 64 * 128 + 2 * 128**2 + 1280 + 394
