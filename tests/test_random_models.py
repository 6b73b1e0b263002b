"""Random models in which private units must be private, whatever else there is in them."""

import pytest
import slow_private
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from random_models import INPUTS, OPERATIONS, STEPS, Program
from sizes import COUNTS, SIZE, drawn

from plasticity import find_units

PARTS = {kind: max(10, SIZE.models // len(INPUTS)) for kind in INPUTS}


@pytest.mark.parametrize("kind", INPUTS)
def test_private_units_of_random_models_leave_no_trace(kind):
    checked = []

    @drawn(PARTS[kind])
    @given(steps=STEPS, seed=st.integers(0, 1000))
    def holds(steps, seed):
        torch.manual_seed(seed)
        example, other = INPUTS[kind](), INPUTS[kind]()
        model = Program(steps, *example)
        units = find_units(model, example)
        private = [group for group in units if group.private]
        COUNTS.update(
            {
                "models": 1,
                "steps": sum(model.done),
                "groups": len(units),
                "units": sum(group.size for group in units),
                "private groups": len(private),
                "private units": sum(group.size for group in private),
                "models with private groups": bool(private),
            }
        )
        assume(private)
        slow_private.check(model, units, [example, other], seed=seed, effect=False, finite=False)
        checked.append(len(private))

    holds()
    assert len(checked) >= PARTS[kind]


@pytest.mark.parametrize("operation", range(len(OPERATIONS)), ids=[each.__name__ for each in OPERATIONS])
def test_every_step_fits_some_tensor(operation):
    """A step that never does anything would prove nothing."""
    for make in INPUTS.values():
        for number in range(24):
            for before in ([], [(1, 0, 0, number)], [(1, 0, 0, number), (1, 0, 0, 23 - number)]):
                torch.manual_seed(number)
                if Program([*before, (operation, 0, 1, number)], *make()).done[-1]:
                    return
    raise AssertionError("it does nothing to any input")
