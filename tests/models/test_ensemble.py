"""The dynamics ensemble against loops over seeds, members, rows and dimensions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from worldrl.models.ensemble import (
    INPUT_CLIP,
    Ensemble,
    Standardizer,
    fit_standardizer,
    forward,
    gaussian_loss,
    init_ensemble,
    layer_weight_decay,
    standardize,
)
from worldrl.types import Parameters

P, N, S, A, B = 2, 3, 2, 1, 4
BOUND_WEIGHT = 0.01


def random_parameters(layer_norm: bool = False, seed: int = 0) -> Parameters:
    """Float64 values of no special size, the log-variance bounds inside what outputs reach."""
    generators = [torch.Generator() for _ in range(P)]
    shapes = init_ensemble(generators, S, A, (5, 4), N, layer_norm)
    generator = torch.Generator().manual_seed(seed)
    parameters = {
        name: torch.randn(value.shape, generator=generator, dtype=torch.float64)
        for name, value in shapes.items()
    }
    parameters["max_log_variance"] = 0.5 + 0.3 * parameters["max_log_variance"]
    parameters["min_log_variance"] = -2.0 + 0.3 * parameters["min_log_variance"]
    return parameters


def random_batch(seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(P, N, B, S + A, generator=generator, dtype=torch.float64)
    return inputs, torch.randn(P, N, B, S + 1, generator=generator, dtype=torch.float64)


def reference_forward(
    parameters: Parameters, inputs: np.ndarray, seed: int, member: int
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and log-variance of one member for rows ``(B, S + A)``, in numpy."""
    own = {name: value.numpy() for name, value in parameters.items()}
    hidden = inputs
    for layer in range(3):
        hidden = hidden @ own[f"weight.{layer}"][seed, member] + own[f"bias.{layer}"][seed, member]
        if f"scale.{layer}" in own:
            centred = hidden - hidden.mean(1, keepdims=True)
            hidden = centred / np.sqrt(hidden.var(1, keepdims=True) + 1e-5)
            hidden = (
                hidden * own[f"scale.{layer}"][seed, member] + own[f"shift.{layer}"][seed, member]
            )
        if layer < 2:
            hidden = hidden / (1 + np.exp(-hidden))
    mean, raw = hidden[:, : S + 1], hidden[:, S + 1 :]
    upper, lower = own["max_log_variance"][seed], own["min_log_variance"][seed]
    raw = upper - np.log(1 + np.exp(upper - raw))
    return mean, lower + np.log(1 + np.exp(raw - lower))


def reference_loss(parameters: Parameters, inputs: Tensor, targets: Tensor) -> float:
    """The published loss without the weight decay, summed over seeds."""
    total = 0.0
    for seed in range(P):
        for member in range(N):
            mean, log_variance = reference_forward(
                parameters, inputs[seed, member].numpy(), seed, member
            )
            terms = []
            for row in range(B):
                for dim in range(S + 1):
                    error = mean[row, dim] - targets[seed, member, row, dim].item()
                    lv = log_variance[row, dim]
                    terms.append(error**2 * math.exp(-lv) + lv)
            total += sum(terms) / len(terms)
        for dim in range(S + 1):
            upper = parameters["max_log_variance"][seed, dim].item()
            lower = parameters["min_log_variance"][seed, dim].item()
            total += BOUND_WEIGHT * (upper - lower)
    return total


# -- initial values ------------------------------------------------------------------------


def test_initial_weights_are_a_normal_truncated_at_two_deviations():
    generators = [torch.Generator().manual_seed(seed) for seed in range(2)]
    parameters = init_ensemble(generators, 30, 6, (200, 100), 4)
    #: A normal cut at two deviations has this deviation.
    density = math.exp(-2) / math.sqrt(2 * math.pi)
    truncated = math.sqrt(1 - 4 * density / math.erf(math.sqrt(2)))
    for layer, fan_in in enumerate((36, 200, 100)):
        weight = parameters[f"weight.{layer}"]
        std = 1 / (2 * math.sqrt(fan_in))
        assert weight.shape[:3] == (2, 4, fan_in)
        assert weight.abs().max() <= 2 * std * (1 + 1e-6)
        assert weight.abs().max() > 1.98 * std
        assert weight.std() == pytest.approx(truncated * std, rel=0.02)
        assert abs(weight.mean()) < 0.03 * std
        beyond_one = (weight.abs() > std).float().mean()
        assert beyond_one == pytest.approx((0.31731 - 0.0455) / 0.9545, abs=0.01)
        assert not parameters[f"bias.{layer}"].any()
    assert parameters["weight.2"].shape == (2, 4, 100, 2 * 31)
    assert parameters["max_log_variance"].equal(torch.full((2, 31), 0.5))
    assert parameters["min_log_variance"].equal(torch.full((2, 31), -10.0))


def test_members_and_seeds_start_apart_and_a_seed_starts_as_alone():
    generators = [torch.Generator().manual_seed(seed) for seed in (7, 8)]
    together = init_ensemble(generators, S, A, (5,), N, layer_norm=True)
    alone = init_ensemble([torch.Generator().manual_seed(8)], S, A, (5,), N, layer_norm=True)
    assert all(alone[name][0].equal(together[name][1]) for name in alone)
    weight = together["weight.0"]
    assert not weight[0].equal(weight[1])
    assert not weight[0, 0].equal(weight[0, 1])
    assert together["scale.0"].equal(torch.ones(2, N, 1, 5))
    assert "scale.1" not in together


# -- loss ----------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_norm", [False, True])
def test_forward_equals_a_numpy_loop(layer_norm):
    parameters = random_parameters(layer_norm)
    inputs, _ = random_batch()
    mean, variance = forward(parameters, inputs)
    assert mean.shape == variance.shape == (P, N, B, S + 1)
    for seed in range(P):
        for member in range(N):
            wanted = reference_forward(parameters, inputs[seed, member].numpy(), seed, member)
            np.testing.assert_allclose(mean[seed, member], wanted[0], rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(variance[seed, member].log(), wanted[1], rtol=1e-10)


def test_the_same_rows_can_go_to_every_member():
    parameters = random_parameters()
    inputs = random_batch()[0][:, :1]
    shared = forward(parameters, inputs)
    repeated = forward(parameters, inputs.repeat(1, N, 1, 1))
    for one, other in zip(shared, repeated, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_log_variance_stays_within_its_bounds_and_is_free_between_them():
    parameters = random_parameters()
    last = 2
    for name in f"weight.{last}", f"bias.{last}":
        parameters[name].zero_()
    parameters["max_log_variance"].fill_(0.5)
    parameters["min_log_variance"].fill_(-10.0)
    inputs, _ = random_batch()
    wanted = {-1000.0: -10.0, -4.75: -4.75, 1000.0: 0.5}
    for raw, clamped in wanted.items():
        parameters[f"bias.{last}"][..., S + 1 :] = raw
        log_variance = forward(parameters, inputs)[1].log()
        assert log_variance.isfinite().all()
        torch.testing.assert_close(
            log_variance, torch.full_like(log_variance, clamped), atol=0.011, rtol=0
        )


@pytest.mark.parametrize("layer_norm", [False, True])
def test_loss_equals_a_numpy_loop(layer_norm):
    parameters = random_parameters(layer_norm)
    inputs, targets = random_batch()
    loss, errors = gaussian_loss(parameters, inputs, targets, BOUND_WEIGHT)
    assert loss.item() == pytest.approx(reference_loss(parameters, inputs, targets), rel=1e-10)
    for seed in range(P):
        squares = []
        for member in range(N):
            mean, _ = reference_forward(parameters, inputs[seed, member].numpy(), seed, member)
            squares.append((mean - targets[seed, member].numpy()) ** 2)
        assert errors[seed].item() == pytest.approx(np.mean(squares), rel=1e-10)
    assert not errors.requires_grad


def test_gradient_equals_finite_differences():
    parameters = {k: v.requires_grad_() for k, v in random_parameters().items()}
    inputs, targets = random_batch()
    gaussian_loss(parameters, inputs, targets, BOUND_WEIGHT)[0].backward()
    plain = {name: value.detach().clone() for name, value in parameters.items()}
    choose = np.random.default_rng(0)
    step = 1e-6
    for name, value in plain.items():
        gradient = parameters[name].grad
        assert gradient is not None
        entries = value.view(-1)
        for entry in choose.choice(len(entries), size=min(12, len(entries)), replace=False):
            before = entries[entry].item()
            entries[entry] = before + step
            above = reference_loss(plain, inputs, targets)
            entries[entry] = before - step
            below = reference_loss(plain, inputs, targets)
            entries[entry] = before
            found = gradient.reshape(-1)[entry].item()
            assert found == pytest.approx((above - below) / (2 * step), rel=1e-4, abs=1e-7), name


def test_gradients_of_seeds_and_members_do_not_mix():
    parameters = {k: v.requires_grad_() for k, v in random_parameters().items()}
    inputs, targets = random_batch()
    gaussian_loss(parameters, inputs, targets, BOUND_WEIGHT)[0].backward()
    first = {name: value.grad.clone() for name, value in parameters.items()}
    for value in parameters.values():
        value.grad = None
    inputs, targets = inputs.clone(), targets.clone()
    inputs[1], targets[1] = 5.0, -5.0  # another seed
    inputs[0, 1:], targets[0, 1:] = 5.0, -5.0  # other members
    gaussian_loss(parameters, inputs, targets, BOUND_WEIGHT)[0].backward()
    for name, value in parameters.items():
        if "log_variance" not in name:  # shared by the members of a seed
            torch.testing.assert_close(value.grad[0, 0], first[name][0, 0], rtol=1e-12, atol=1e-12)
            assert not value.grad[0, 1].equal(first[name][0, 1])


# -- weight decay --------------------------------------------------------------------------


def test_published_decay_serves_the_published_depth_and_spares_biases():
    published = (2.5e-5, 5e-5, 7.5e-5, 7.5e-5, 1e-4)
    decay = layer_weight_decay(published, 5)
    assert decay == {f"weight.{layer}": value for layer, value in enumerate(published)}


@pytest.mark.parametrize(
    ("given", "layers", "wanted"),
    [
        ((3.0,), 4, (3.0, 3.0, 3.0, 3.0)),
        ((1.0, 5.0), 1, (1.0,)),
        ((1.0, 3.0, 9.0), 2, (1.0, 9.0)),
        ((1.0, 3.0, 9.0), 5, (1.0, 2.0, 3.0, 6.0, 9.0)),
        ((1.0, 2.0, 3.0, 4.0, 6.0), 3, (1.0, 3.0, 6.0)),
        ((1.0, 2.0, 3.0, 4.0, 6.0), 4, (1.0, 1 + 4 / 3, 3 + 2 / 3, 6.0)),
    ],
)
def test_decay_of_another_depth_is_stretched(given, layers, wanted):
    decay = layer_weight_decay(given, layers)
    assert list(decay) == [f"weight.{layer}" for layer in range(layers)]
    assert tuple(decay.values()) == pytest.approx(wanted)


# -- standardisation -----------------------------------------------------------------------


def test_moments_are_those_of_each_seeds_rows():
    rows = torch.randn(50, 4) * torch.tensor([1.0, 5.0, 0.1, 20.0]) + 3
    indices = torch.stack([torch.randperm(50)[:30], torch.randperm(50)[:30]])
    found = fit_standardizer(rows, indices)
    assert found.mean.dtype == torch.float32
    for seed in range(2):
        own = rows[indices[seed]].double().numpy()
        np.testing.assert_allclose(found.mean[seed], own.mean(0), rtol=1e-6)
        np.testing.assert_allclose(found.scale[seed], own.std(0), rtol=1e-6)  # ddof 0


def test_moments_are_computed_in_float64():
    """1e4 + small: float32 sums of squares would lose the deviation altogether."""
    rows = torch.full((1000, 1), 10_000.0)
    rows[::2] += 2.0**-9
    deviation = 2.0**-10
    found = fit_standardizer(rows, torch.arange(1000)[None])
    assert found.scale.item() == pytest.approx(deviation, rel=1e-4)


def test_constant_dimensions_have_scale_one():
    """Rounding noise of a constant must not be taken for a signal and be blown up."""
    rows = torch.randn(100, 3)
    rows[:, 1] = 0.1
    rows[:, 2] = 1e-8 * torch.randn(100)
    found = fit_standardizer(rows, torch.arange(100)[None])
    assert found.scale[0, 1] == 1
    assert found.scale[0, 2] == 1
    scaled = standardize(
        Standardizer(found.mean, found.scale), torch.full((1, 1, 2), 0.1), torch.zeros(1, 1, 1)
    )
    assert scaled.isfinite().all()
    assert abs(scaled[0, 0, 1].item()) < 1e-6


@pytest.mark.parametrize("between", [(), (N,)])
def test_inputs_are_scaled_by_their_own_seed_and_clipped(between):
    mean = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 1.0]])
    scale = torch.tensor([[1.0, 2.0, 4.0], [0.5, 0.25, 1e-3]])
    observation, action = torch.randn(P, *between, B, S), torch.randn(P, *between, B, A)
    scaled = standardize(Standardizer(mean, scale), observation, action)
    joined = torch.cat([observation, action], -1)
    for seed in range(P):
        wanted = ((joined[seed] - mean[seed]) / scale[seed]).clamp(-10, 10)
        torch.testing.assert_close(scaled[seed], wanted)
    assert scaled.abs().max() == INPUT_CLIP == 10


# -- prediction ----------------------------------------------------------------------------


@pytest.mark.parametrize("raw_targets", [True, False])
def test_prediction_adds_the_observation_and_leaves_the_reward(raw_targets):
    parameters = random_parameters()
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = Standardizer(normal(P, S + A), 0.5 + normal(P, S + A).abs())
    targets = Standardizer(normal(P, S + 1), 0.5 + normal(P, S + 1).abs())
    if raw_targets:
        targets = Standardizer(torch.zeros(P, S + 1).double(), torch.ones(P, S + 1).double())
    observation, action = 3 * normal(P, B, S), normal(P, B, A)
    ensemble = Ensemble(parameters, inputs, targets, torch.zeros(P, 1, dtype=torch.int64))
    found = ensemble.predict(observation, action)
    assert found.mean.shape == found.std.shape == (P, N, B, S + 1)
    for seed in range(P):
        joined = torch.cat([observation[seed], action[seed]], 1)
        scaled = ((joined - inputs.mean[seed]) / inputs.scale[seed]).clamp(-10, 10).numpy()
        for member in range(N):
            mean, log_variance = reference_forward(parameters, scaled, seed, member)
            mean = mean * targets.scale[seed].numpy() + targets.mean[seed].numpy()
            mean[:, :S] += observation[seed].numpy()
            std = np.exp(log_variance / 2) * targets.scale[seed].numpy()
            np.testing.assert_allclose(found.mean[seed, member], mean, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(found.std[seed, member], std, rtol=1e-9)


def test_elites_predict_alone_as_among_all():
    generators = [torch.Generator().manual_seed(seed) for seed in range(P)]
    elites = torch.tensor([[3, 0], [1, 2]])
    ensemble = Ensemble(
        init_ensemble(generators, S, A, (8,), 4, layer_norm=True),
        Standardizer(torch.zeros(P, S + A), torch.ones(P, S + A)),
        Standardizer(torch.ones(P, S + 1), 2 * torch.ones(P, S + 1)),
        elites,
    )
    assert len(elites) == P
    rows = torch.randn(P, 5, S), torch.randn(P, 5, A)
    everyone, found = ensemble.predict(*rows), ensemble.of_elites().predict(*rows)
    for whole, part in zip(everyone, found, strict=True):
        assert part.shape == (P, 2, 5, S + 1)
        for seed in range(P):
            torch.testing.assert_close(part[seed], whole[seed, elites[seed]])


def test_prediction_far_outside_the_data_is_finite():
    parameters = {k: v.float() for k, v in random_parameters().items()}
    identity = Standardizer(torch.zeros(P, S + A), torch.ones(P, S + A))
    targets = Standardizer(torch.zeros(P, S + 1), torch.ones(P, S + 1))
    ensemble = Ensemble(parameters, identity, targets, torch.zeros(P, 1, dtype=torch.int64))
    far, farther = (
        ensemble.predict(torch.full((P, 1, S), value), torch.zeros(P, 1, A)) for value in (20, 1e6)
    )
    assert farther.mean.isfinite().all()
    change = [far.mean[..., :-1] - 20, farther.mean[..., :-1] - 1e6]
    torch.testing.assert_close(*change, atol=0.2, rtol=0)  # saturated: only rounding differs
    torch.testing.assert_close(far.std, farther.std)


@pytest.mark.parametrize("rows", [64, 600])
def test_half_precision_stays_near_single(rows):
    """bfloat16 keeps eight bits: a few hundredths after three layers; parameters stay float32."""
    parameters = {name: value.float() for name, value in random_parameters().items()}
    inputs = torch.randn(P, N, rows, S + A, generator=torch.Generator().manual_seed(1))
    wanted = forward(parameters, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        found = forward(parameters, inputs)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.float32
        assert not one.equal(other)
        error = (one - other).abs().mean() / other.abs().mean()
        assert error < 0.03
