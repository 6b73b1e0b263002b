"""How much units vary, against numpy: over batches, convolutions, runs of columns, and values that are not finite."""

import math

import numpy as np
import pytest
import torch
from hyper_hypo_runs import numpy_entropy
from torch import nn

from plasticity import find_units
from plasticity.methods.hyper_hypo_spread import histogram_entropy, spread_statistics
from plasticity.probe import Probe


def check(model: nn.Module, windows: list[torch.Tensor], place: str, name: str, unit_dim: int) -> None:
    """Compare what is found for a group with its activations, seen by a hook of the test's own."""
    seen: list[np.ndarray] = []

    def hook(module, args, output) -> None:
        seen.append(np.moveaxis(output.detach().double().numpy(), unit_dim, 0).reshape(output.shape[unit_dim], -1))

    units = find_units(model, windows[0])
    found, outputs = spread_statistics(model, units, Probe([(x,) for x in windows]))
    model.eval()
    model.get_submodule(place).register_forward_hook(hook)
    expected = torch.cat([model(x) for x in windows])
    assert torch.equal(outputs, expected.flatten(1))
    stat, whole = found[name], np.concatenate(seen, axis=1)
    np.testing.assert_allclose(stat.std.numpy(), whole.std(axis=1), rtol=1e-6, atol=1e-12)
    weights = [part.shape[1] for part in seen]
    entropies = np.array([[numpy_entropy(row) for row in part] for part in seen])
    np.testing.assert_allclose(stat.entropy.numpy(), np.average(entropies, axis=0, weights=weights), rtol=1e-6)
    np.testing.assert_allclose(stat.mean.numpy(), whole.mean(axis=1), rtol=1e-6)
    assert stat.count == whole.shape[1]
    assert stat.fired.tolist() == (whole > 0).sum(1).tolist()


def test_of_linear_units_over_windows_of_unequal_size() -> None:
    model = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Dropout(), nn.Linear(7, 3))
    with torch.no_grad():
        model[0].bias[:2] = torch.tensor([-50.0, 50.0])  # never fires; always does
    windows = [torch.randn(size, 5) for size in (40, 1, 23)]
    check(model, windows, "1", "0", 1)
    found, _ = spread_statistics(model, find_units(model, windows[0]), Probe([(x,) for x in windows]))
    assert found["0"].std[0] == 0 and found["0"].entropy[0] == 0
    assert float(found["0"].entropy.max()) <= math.log(16)


def test_of_channels_of_a_convolution_whose_positions_count() -> None:
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 6), nn.Tanh(), nn.Linear(6, 2)
    )
    windows = [torch.randn(size, 2, 4, 4) for size in (9, 6)]
    check(model, windows, "2", "0", 1)
    check(model, windows, "5", "4", 1)


def test_an_activation_after_a_flatten_has_a_run_of_columns_for_each_unit() -> None:
    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.relu, self.head = nn.Conv2d(1, 3, 2), nn.ReLU(), nn.Linear(12, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.relu(self.conv(x).flatten(1)))

    model, x = Flattened(), torch.randn(20, 1, 3, 3)
    found, _ = spread_statistics(model, find_units(model, x), Probe([(x,)]))
    h = model.conv(x).relu().detach().double().numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(found["conv"].std.numpy(), h.std(axis=1), rtol=1e-6)
    np.testing.assert_allclose(found["conv"].entropy.numpy(), [numpy_entropy(row) for row in h], rtol=1e-6)


def test_channels_last_units_are_told_apart() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(1, 3, 2), nn.Linear(12, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(torch.relu(self.conv(x).permute(0, 2, 3, 1).flatten(1)))

    model, x = Last(), torch.randn(20, 1, 3, 3)
    found, _ = spread_statistics(model, find_units(model, x), Probe([(x,)]))
    h = model.conv(x).relu().detach().double().numpy().transpose(1, 0, 2, 3).reshape(3, -1)
    np.testing.assert_allclose(found["conv"].std.numpy(), h.std(axis=1), rtol=1e-6)


def test_a_far_away_mean_does_not_blur_the_deviation() -> None:
    """Sums of squares would be 1e16 here, and the deviation lost in their last digits."""
    model = nn.Sequential(nn.Linear(1, 1).double(), nn.ReLU(), nn.Linear(1, 1).double())
    with torch.no_grad():
        model[0].weight.fill_(1)
        model[0].bias.fill_(1e8)
    windows = [torch.randn(50, 1, dtype=torch.float64) for _ in range(4)]
    found, _ = spread_statistics(model, find_units(model, windows[0]), Probe([(x,) for x in windows]))
    expected = torch.cat(windows).add(1e8).sub(1e8).std(correction=0)  # rounded as the activations are
    assert float(found["0"].std) == pytest.approx(float(expected), rel=1e-7)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_has_no_entropy(broken: float) -> None:
    rows = torch.tensor([[0.0, 1.0, 2.0, 2.0], [1.0, broken, 0.0, 3.0]], dtype=torch.float64)
    found = histogram_entropy(rows)
    assert float(found[0]) == pytest.approx(numpy_entropy(rows[0].numpy())) and found[1].isnan()
