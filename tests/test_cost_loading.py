"""Costs of loading: all loaders train the same network on the same data."""

import pytest
import torch
from PIL.Image import Image
from torchvision.transforms.functional import to_tensor

from benchmarks.cost import loading
from benchmarks.models import build_model
from plasticity.loading import TensorLoaderPlugin

CPU = torch.device("cpu")


def test_loading_is_measured_against_avalanche_and_a_bare_loop(monkeypatch):
    monkeypatch.setattr(loading, "SAMPLES", 64)
    lines = list(loading.measure(CPU, 1))
    assert {line.section for line in lines} == {"loading"} and all(line.ratio.median > 0 for line in lines)
    units = [line.unit for line in lines]
    assert units == ["samples a second / Avalanche's loader", "samples a second / bare loop over tensors"] * 2


@pytest.mark.parametrize("network", loading.NETWORKS, ids=lambda network: network[1])
def test_both_loaders_train_the_same_network(network):
    _, model, shape, batch_size, kind = network
    experience = loading.stock_stream(kind, shape, 48).train_stream[0]
    data = loading.pictures(kind, shape, 48)
    first, *_ = (number for number in range(48) if data[number][1] == 0)  # samples are in order of class
    picture, _ = data[first]
    assert isinstance(picture, Image) and torch.equal(experience.dataset[0][0], (to_tensor(picture) - 0.5) / 0.25)
    trained = []
    for plugins in ([TensorLoaderPlugin()], []):
        found = []

        def build(found=found):
            found.append(build_model(model, 10, shape))
            return found[0]

        assert loading._avalanche(experience, build, batch_size, CPU, plugins)() > 0
        trained.append(found[0].state_dict())
    assert all(torch.equal(trained[0][name], value) for name, value in trained[1].items())
