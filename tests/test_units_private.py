"""Private units are private: the deciding property over models of all kinds."""

import dataclasses

import pytest
import slow_private
import torch
from cases import AVALANCHE, TORCHVISION, Net, labelled
from cases_images import IMAGES, SIGNALS
from cases_vectors import VECTORS
from torch import nn

from plasticity import find_units
from plasticity.units import UnitGroups

CASES = [*AVALANCHE, *TORCHVISION, *VECTORS, *IMAGES, *SIGNALS]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_private_units_leave_no_trace(case):
    model, batches = case.model(), case.inputs()
    units = find_units(model, batches[0])
    slow_private.check_found(units, case.private, case.watched)
    slow_private.check(model, units, batches, alone=case.alone, training=case.training)


def test_found_in_either_mode():
    for case in (*AVALANCHE, *TORCHVISION, *IMAGES):
        model, (example, *_) = case.model(), case.inputs()
        tables = []
        for training in (True, False):
            model.train(training)
            tables.append(str(find_units(model, example)))
        assert tables[0] == tables[1], case.name


def test_the_check_finds_wrong_columns():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2))
    batches = [(torch.randn(2, 3, 8, 8),)]
    (group,) = find_units(model, batches[0])
    slow_private.check(model, [group], batches)
    reader = group.readers[0]
    strided = reader._replace(columns=reader.columns.t().reshape(4, 36))  # as if channels came last
    wrong = dataclasses.replace(group, consumers=(strided,))
    with pytest.raises(AssertionError, match="not private in eval mode"):
        slow_private.check(model, [wrong], batches)


def test_the_check_finds_shared_units():
    model = Net(lambda m, x: m.b(torch.relu(m.a(x))) + m.c(x), a=nn.Linear(4, 5), b=nn.Linear(5, 4), c=nn.Linear(4, 4))
    leaking = Net(lambda m, x: (h := torch.relu(m.a(x)), m.b(h))[1] + h[:, :4], a=model.a, b=model.b)
    batches = [(torch.randn(3, 4),)]
    units = find_units(model, batches[0])
    slow_private.check(model, units, batches)
    with pytest.raises(AssertionError, match="not private"):
        slow_private.check(leaking, units, batches)


def test_heads_of_other_tasks_read_too():
    for case in AVALANCHE:
        model, batches = case.model(), case.inputs()
        heads = [name for name, module in model.named_modules() if name.endswith("s.1.classifier")]
        if len(batches) < 3 or not heads:
            continue
        units = find_units(model, batches[0])  # task 0 alone
        others = [find_units(model, batch) for batch in batches[1:3]]
        prefix = heads[0].removesuffix("1.classifier")
        last = [group for group in units if any(c.layer.startswith(prefix) for c in group.consumers)]
        assert last, case.name
        for group in last:
            assert {c.layer for c in group.consumers} == {f"{prefix}{task}.classifier" for task in range(3)}
        assert all(str(other) == str(units) for other in others), case.name


def test_growing_heads_are_read():
    from avalanche.models import MTSimpleMLP
    from cases import adapted

    model = adapted(MTSimpleMLP(input_size=20, hidden_size=16), tasks=2)
    before = find_units(model, (torch.randn(3, 20), torch.zeros(3, dtype=torch.int64)))
    adapted(model, tasks=5)
    after = find_units(model, (torch.randn(3, 20), torch.zeros(3, dtype=torch.int64)))
    assert len(before["features.0"].consumers) == 2
    assert len(after["features.0"].consumers) == 5
    slow_private.check(model, after, labelled(4, 20, tasks=5)())


def test_frozen_transformer_in_eval_mode():
    """Where nothing needs a gradient, PyTorch would run the whole layer as one operator."""
    model = nn.Sequential(
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, batch_first=True), 2), nn.Linear(8, 3)
    )
    model.requires_grad_(False).eval()
    units = find_units(model, torch.randn(2, 5, 8))
    assert [group.name for group in units if group.private] == ["0.layers.0.linear1", "0.layers.1.linear1"]
    slow_private.check(model, units, [(torch.randn(2, 5, 8),)])


def test_agrees_with_a_dependency_graph():
    """Torch-Pruning follows the autograd graph instead; where units are private, both name the same columns."""
    pruning = pytest.importorskip("torch_pruning")
    for case in AVALANCHE[:3]:
        model, (example, *_) = case.model().eval(), case.inputs()
        units = find_units(model, example)
        graph = pruning.DependencyGraph().build_dependency(model, example_inputs=example[0])
        names = {module: name for name, module in model.named_modules()}
        for group in (group for group in units if group.private):
            layer = model.get_submodule(group.name)
            prune = pruning.prune_linear_out_channels
            if isinstance(layer, nn.Conv2d):
                prune = pruning.prune_conv_out_channels
            unit = group.size - 1
            found = {}
            for dependency, columns in graph.get_pruning_group(layer, prune, idxs=[unit]):
                if "in_channels" in str(dependency.handler.__name__):
                    found[names[dependency.target.module]] = sorted(columns)
            assert found == {c.layer: sorted(c.columns[unit].tolist()) for c in group.readers}, group.name


def test_units_are_found_with_one_sample():
    for case in (*AVALANCHE[:3], *VECTORS[:12]):
        model, (example, *_) = case.model(), case.inputs()
        assert isinstance(units := find_units(model, example), UnitGroups)
        assert str(find_units(model, tuple(part[:1] for part in example))) == str(units), case.name
