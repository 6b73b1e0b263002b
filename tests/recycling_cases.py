"""Networks with units to recycle, and checks that are the same for every method that makes units new."""

import copy

import torch
from reset_cases import NETS, incoming_by_hand, outgoing_by_hand
from torch import nn

from plasticity import UnitGroups, find_units
from plasticity.methods.recycling import initial_values
from plasticity.surgery import OUTGOING_SHARE

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    "adam": lambda p: torch.optim.Adam(p, lr=1e-2),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
}
CASES = ["linear", "flatten", "batch norm", "grouped"]
SECOND = {"exp_avg_sq"}


class Case:
    """A network after a few steps; `initial` is what it was before, `group` the one to treat."""

    def __init__(self, name, optimizer="adam", steps=3):
        torch.manual_seed(1)
        self.net = NETS[name]
        self.model = self.net.build()
        self.initial = initial_values(self.model)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.x = torch.randn(40, *self.net.shape[1:])
        self.all_units = find_units(self.model, self.x[:2])
        self.group = self.all_units[self.net.group]
        self.units = UnitGroups([self.group])
        for _ in range(steps):
            self.update()
        self.remember()

    def update(self):
        self.optimizer.zero_grad()
        output = self.model(torch.randn(8, *self.net.shape[1:]))
        (output.flatten(1).square().mean() + output.mean()).backward()
        self.optimizer.step()

    def remember(self):
        """What there is now is what later checks compare with."""
        self.before = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.state = copy.deepcopy(self.optimizer.state_dict()["state"])

    def kill(self, units):
        """Make units dead for any input."""
        with torch.no_grad():
            if self.group.norm:
                norm = self.model.get_submodule(self.group.norm)
                norm.bias[units], norm.weight[units] = -1e4, 0.1
            else:
                self.model.get_submodule(self.group.name).bias[units] = -1e4
        self.remember()

    def weaken(self, unit):
        """Make a unit a thousand times less active."""
        with torch.no_grad():
            writer = self.model.get_submodule(self.group.norm or self.group.name)
            writer.weight[unit] *= 1e-3
            writer.bias[unit] = 1e-3
        self.remember()

    def activations(self, x=None):
        """What the group's units do, (samples x positions, size), from the output of the first ReLU."""
        seen = []
        relu = next(module for module in self.model if isinstance(module, nn.ReLU))
        handle = relu.register_forward_hook(lambda module, args, output: seen.append(output))
        self.model(self.x if x is None else x)
        handle.remove()
        return seen[0].detach().movedim(1, 0).reshape(self.group.size, -1).T

    def check_renewed(self, chosen, monkeypatch, moments="young"):
        """The chosen units are new, and all else, with its optimizer state, is bit-equal to what was remembered."""
        monkeypatch.setattr("reset_cases.UNITS", list(chosen))
        incoming = incoming_by_hand(self.net, self.model) if chosen else {}
        outgoing = outgoing_by_hand(self.net, self.model) if chosen else {}
        start = {"weight": 1, "bias": 0, "running_mean": 0, "running_var": 1}
        for name, tensor in self.model.state_dict().items():
            old = self.before[name]
            if name in outgoing:
                assert torch.equal(tensor, old.masked_fill(outgoing[name], 0)), name
            elif name in incoming:
                where = incoming[name]
                assert torch.equal(tensor[~where], old[~where]), name
                layer, _, part = name.rpartition(".")
                if isinstance(self.model.get_submodule(layer), nn.BatchNorm2d):
                    assert (tensor[where] == start[part]).all(), name
                else:
                    assert set(tensor[where].tolist()) <= set(self.initial[name].flatten().tolist()), name
                    assert part == "bias" or (tensor[where] != old[where]).any(), name  # few biases to draw from
            else:
                assert torch.equal(tensor, old), name
        self.check_state({**incoming, **outgoing}, outgoing, moments)

    def check_state(self, touched, outgoing, moments):
        after = self.optimizer.state_dict()["state"]
        seen = 0
        for number, (name, _) in enumerate(self.model.named_parameters()):
            for key, old in self.state[number].items():
                new = after[number][key]
                where = touched.get(name)
                if where is None or not isinstance(old, torch.Tensor) or old.dim() == 0:
                    assert torch.equal(torch.as_tensor(new), torch.as_tensor(old)), (name, key)
                    continue
                kept = old[~where & (old > 0)]
                share = OUTGOING_SHARE if name in outgoing else 0.01
                value = share * kept.mean() if key in SECOND and moments == "young" and len(kept) else 0.0
                expected = torch.where(where, torch.as_tensor(value, dtype=old.dtype), old)
                torch.testing.assert_close(new, expected, rtol=1e-5, atol=0)
                seen += 1
        assert seen or not touched
