"""What every test starts from: one thread and the same random state."""

import os
import random

import numpy as np
import pytest
import torch
from sizes import COUNTS, summary

SEED = int(os.environ.get("PLASTICITY_TEST_SEED", "0"))


def _begin():
    torch.set_num_threads(1)
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)


def pytest_collectstart(collector):
    if isinstance(collector, pytest.Module):
        _begin()  # what a module draws while it is imported does not depend on those before it


@pytest.fixture(autouse=True)
def _as_at_the_beginning():
    _begin()


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["drawn"] = dict(COUNTS)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    COUNTS.update(getattr(node, "workeroutput", {}).get("drawn", {}))


def pytest_terminal_summary(terminalreporter):
    for line in summary(COUNTS):
        terminalreporter.write_line(line)
