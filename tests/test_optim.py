"""Adam for populations against torch's own, one torch optimiser a member."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldrl.optim import adam_init, adam_step
from worldrl.types import Parameters

STEPS = 50
RATES = (1e-3, 3e-2, 2e-4)
DECAY = {"weight.0": 0.3, "weight.1": 1e-4}


def fresh_parameters(dtype: torch.dtype) -> Parameters:
    generator = torch.Generator().manual_seed(1)
    shapes = {
        "weight.0": (2, 4, 5), "bias.0": (2, 1, 5), "weight.1": (5, 3), "log_value": (),
    }  # fmt: skip
    return {
        name: torch.randn(len(RATES), *shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
    }


def gradient_noise(step: int, parameters: Parameters) -> Parameters:
    """Of very different sizes, so that epsilon and the bias corrections matter."""
    generator = torch.Generator().manual_seed(100 + step)
    scale = 10.0 ** (step % 5 * -3)  # 1 ... 1e-12
    return {
        name: scale * torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in parameters.items()
    }


def gradients(step: int, parameters: Parameters) -> Parameters:
    """Of a quadratic, plus noise: a path that depends on where the parameters are."""
    noise = gradient_noise(step, parameters)
    return {name: 0.1 * v * (step % 2) + noise[name].to(v) for name, v in parameters.items()}


def torch_adam(
    member: int, dtype: torch.dtype, betas: tuple[float, float], eps: float
) -> tuple[Parameters, torch.optim.Adam]:
    own = {name: value[member].clone() for name, value in fresh_parameters(dtype).items()}
    groups = [
        {"params": [value], "weight_decay": DECAY.get(name, 0.0)} for name, value in own.items()
    ]
    adam = torch.optim.Adam(groups, lr=RATES[member], betas=betas, eps=eps)
    noise = [gradient_noise(step, fresh_parameters(dtype)) for step in range(STEPS)]
    for step in range(STEPS):
        for name, value in own.items():
            value.grad = 0.1 * value * (step % 2) + noise[step][name][member].to(value)
        adam.step()
    return own, adam


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-13), (torch.float32, 2e-6)], ids=str
)
@pytest.mark.parametrize(("betas", "eps"), [((0.9, 0.999), 1e-8), ((0.5, 0.9), 1e-3)])
def test_fifty_steps_equal_torch_adam_for_every_member(dtype, tolerance, betas, eps):
    parameters = fresh_parameters(dtype)
    state = adam_init(parameters)
    rates = torch.tensor(RATES, dtype=dtype)
    for step in range(STEPS):
        adam_step(parameters, gradients(step, parameters), state, rates, DECAY, betas, eps)
    for member in range(len(RATES)):
        wanted, adam = torch_adam(member, dtype, betas, eps)
        for name, value in wanted.items():
            own = adam.state[value]
            close = {"rtol": tolerance, "atol": tolerance}
            torch.testing.assert_close(parameters[name][member], value, **close)
            torch.testing.assert_close(state.first[name][member], own["exp_avg"], **close)
            torch.testing.assert_close(state.second[name][member], own["exp_avg_sq"], **close)
    assert state.steps.equal(torch.full((len(RATES),), float(STEPS), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_a_member_steps_exactly_as_alone(dtype):
    together = fresh_parameters(dtype)
    state = adam_init(together)
    rates = torch.tensor(RATES, dtype=dtype)
    for step in range(STEPS):
        adam_step(together, gradients(step, together), state, rates, DECAY)
    for member in range(len(RATES)):
        own = slice(member, member + 1)
        alone = {name: value[own].clone() for name, value in fresh_parameters(dtype).items()}
        alone_state = adam_init(alone)
        for step in range(STEPS):
            noise = gradient_noise(step, together)
            gradient = {
                name: 0.1 * value * (step % 2) + noise[name][own].to(value)
                for name, value in alone.items()
            }
            adam_step(alone, gradient, alone_state, rates[own], DECAY)
        assert all(alone[name].equal(together[name][own]) for name in alone)
        assert all(alone_state.second[name].equal(state.second[name][own]) for name in alone)


def test_members_may_stand_at_different_counts():
    """A member that starts later is corrected for its own number of steps."""
    late = {"value": torch.tensor([1.0, 1.0], dtype=torch.float64)}
    state = adam_init(late)
    state.steps[0] = 1000.0
    gradient = {"value": torch.full((2,), 0.5, dtype=torch.float64)}
    adam_step(late, gradient, state, torch.full((2,), 0.1, dtype=torch.float64))
    first = 1.0 - 0.1  # m/sqrt(v) of a first step is the sign of the gradient
    corrected = 0.1 * 0.5 / (1 - 0.9**1001) / ((0.001 * 0.25 / (1 - 0.999**1001)) ** 0.5)
    assert late["value"][1] == pytest.approx(first, abs=1e-6)
    assert late["value"][0] == pytest.approx(1.0 - 0.1 * corrected, abs=1e-6)


def test_decay_is_added_to_the_gradient_and_not_to_the_weight():
    """With a zero gradient Adam's step is the learning rate whatever the decay; AdamW's is not."""
    value = {"w": torch.full((1, 3), 2.0, dtype=torch.float64)}
    state = adam_init(value)
    adam_step(value, {"w": torch.zeros(1, 3).double()}, state, torch.tensor([0.1]), {"w": 1e-3})
    torch.testing.assert_close(value["w"], torch.full((1, 3), 1.9).double(), atol=1e-4, rtol=0)


def test_tensors_are_changed_in_place_and_inputs_are_not():
    parameters = fresh_parameters(torch.float32)
    state = adam_init(parameters)
    references = [*parameters.values(), *state.first.values(), *state.second.values(), state.steps]
    before = [value.clone() for value in references]
    gradient = gradients(0, parameters)
    kept = {name: value.clone() for name, value in gradient.items()}
    adam_step(parameters, gradient, state, torch.tensor(RATES), DECAY)
    now = [*parameters.values(), *state.first.values(), *state.second.values(), state.steps]
    assert all(a is b for a, b in zip(references, now, strict=True))
    assert not any(a.equal(b) for a, b in zip(before, now, strict=True))
    assert all(gradient[name].equal(kept[name]) for name in kept)


def test_initial_state_is_zero_and_as_the_parameters():
    parameters: dict[str, Tensor] = fresh_parameters(torch.float32)
    state = adam_init(parameters)
    for moments in state.first, state.second:
        assert {n: (v.shape, v.dtype) for n, v in moments.items()} == {
            n: (v.shape, v.dtype) for n, v in parameters.items()
        }
        assert not any(value.any() for value in moments.values())
    assert state.steps.dtype == torch.float64
    assert state.steps.equal(torch.zeros(3, dtype=torch.float64))
