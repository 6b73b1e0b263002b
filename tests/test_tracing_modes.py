"""The tracer in other surroundings: modes, data types, checkpoints, branches that a pass does not take."""

import pytest
import slow_private
import torch
import torch.nn.functional as F
from cases import Net
from torch import nn

from plasticity import find_units, register_branches, watch
from plasticity.tracing import branches


def _table(units):
    return [(group.name, group.activation, group.private, group.reason) for group in units]


@pytest.mark.parametrize(
    "surroundings",
    [
        torch.no_grad,
        torch.inference_mode,
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
        lambda: torch.device("cpu"),
        torch.autograd.detect_anomaly,
    ],
    ids=["no_grad", "inference_mode", "autocast", "device", "anomaly"],
)
@pytest.mark.filterwarnings("ignore:Anomaly")
def test_in_other_modes(surroundings):
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(), nn.MaxPool2d(2), nn.Flatten()),
        *(nn.Linear(36, 8), nn.GELU(), nn.Linear(8, 2)),
    )
    expected = _table(find_units(model, torch.randn(2, 3, 8, 8)))
    assert [row[2] for row in expected] == [True, True]
    with surroundings():
        x = torch.randn(2, 3, 8, 8)
        units = find_units(model, x)
        assert _table(units) == expected
        with watch(model, units) as activity:
            model(x)
    model(torch.randn(2, 3, 8, 8))
    assert activity.statistics()["0"].count == 2 * 36


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_other_data_types(dtype):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).to(dtype)
    batches = [(torch.randn(2, 3, 8, 8, dtype=dtype),)]
    units = find_units(model, batches[0])
    slow_private.check_found(units, "0", "")
    slow_private.check(model, units, batches)


def test_more_than_bfloat16_can_count():
    """Numbers of units stay exact under autocast, beyond the 256 that bfloat16 tells apart."""
    model = nn.Sequential(nn.Linear(4, 700), nn.ReLU(), nn.Linear(700, 600), nn.ReLU(), nn.Linear(600, 2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        units = find_units(model, torch.randn(2, 4))
    for group, following in zip(units, ("2", "4"), strict=True):
        (reader,) = group.readers
        assert reader.layer == following
        assert reader.columns.flatten().tolist() == list(range(group.size))
        assert group.writes[0].rows.tolist() == list(range(group.size))


def test_checkpointed_blocks():
    from torch.utils.checkpoint import checkpoint

    for reentrant in (False, True):
        model = Net(
            lambda m, x, how=reentrant: m.c(checkpoint(m.body, x, use_reentrant=how)),
            body=nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 6), nn.ReLU()),
            c=nn.Linear(6, 2),
        )
        x = torch.randn(3, 4, requires_grad=True)
        units = find_units(model, x)
        slow_private.check_found(units, "body.0 body.2", "")
        slow_private.check(model, units, [(x.detach(),)])


def test_nothing_in_the_batch():
    """An example without samples shows nothing, so nothing is private."""
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 2))
    assert not any(group.private for group in find_units(model, torch.randn(0, 4)))


def test_the_example_is_left_alone():
    model = nn.Sequential(nn.ReLU(inplace=True), nn.Linear(4, 5), nn.ReLU(inplace=True), nn.Linear(5, 2))
    x = torch.randn(3, 4)
    kept = x.clone()
    find_units(model, x)
    assert torch.equal(x, kept)


def test_branches_of_ones_own():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.experts = nn.ModuleList(nn.Linear(5, 2) for _ in range(3))
            self.chosen = 0

        def forward(self, x):
            return self.experts[self.chosen](x)

    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), Experts())
    x = torch.randn(3, 4)
    assert not find_units(model, x)["0"].private
    name = f"{Experts.__module__}.{Experts.__qualname__}"
    register_branches(name)(lambda module: [f"experts.{i}" for i in range(len(module.experts))])
    try:
        units = find_units(model, x)
    finally:
        del branches._BRANCHES[name]
    assert units["0"].private
    assert [consumer.layer for consumer in units["0"].consumers] == [f"2.experts.{i}" for i in range(3)]
    for model[2].chosen in range(3):
        slow_private.check(model, units, [(x,)])


def test_branches_do_not_disturb_what_is_watched():
    """Reading for heads that do not run calls no function that counts as an activation of the model's."""
    from avalanche.models import MultiHeadClassifier
    from cases import adapted

    model = adapted(
        Net(
            lambda m, x: m.c(F.relu(m.b(torch.cat([x, m.heads(F.relu(m.a(x)), 0)], 1)))),
            a=nn.Linear(4, 5),
            heads=MultiHeadClassifier(5, 2),
            b=nn.Linear(6, 7),
            c=nn.Linear(7, 2),
        )
    )
    x = torch.randn(3, 4)
    units = find_units(model, x)
    with watch(model, units) as activity:
        model(x)
    hidden = F.relu(model.b(torch.cat([x, model.heads(F.relu(model.a(x)), 0)], 1)))
    torch.testing.assert_close(activity.statistics()["b"].mean, hidden.double().mean(0))
    torch.testing.assert_close(activity.statistics()["a"].mean, F.relu(model.a(x)).double().mean(0))


def test_what_vmap_hides_is_said():
    model = Net(lambda m, x: torch.vmap(lambda row: m.b(torch.relu(m.a(row))))(x), a=nn.Linear(4, 5), b=nn.Linear(5, 2))
    units = find_units(model, torch.randn(3, 4))
    assert len(units) == 0
    assert units.skipped == ("relu: a Tensor of a transform or a sparse layout cannot be followed",)
