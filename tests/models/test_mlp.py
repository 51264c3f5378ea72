"""Networks with leading axes against plain torch modules, one network at a time."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from worldrl.models.mlp import (
    ROWS_PER_NETWORK,
    at_least_float32,
    hidden_features,
    init_uniform,
    mlp,
    num_layers,
    scalar_mlp,
)
from worldrl.types import Parameters

SIZES = [3, 5, 4, 2]


def random_network(
    lead: tuple[int, ...], sizes: list[int], layer_norm: bool, norm_after: bool = False
) -> Parameters:
    generator = torch.Generator().manual_seed(0)
    shapes = init_uniform(sizes, lead, generator, layer_norm, norm_after)
    return {
        name: torch.randn(value.shape, dtype=torch.float64, generator=generator)
        for name, value in shapes.items()
    }


def module(parameters: Parameters, index: tuple[int, ...], activation: nn.Module) -> nn.Module:
    """Network ``index`` of the leading axes as a torch module."""
    layers: list[nn.Module] = []
    count = sum(name.startswith("weight") for name in parameters)
    for layer in range(count):
        weight = parameters[f"weight.{layer}"][index]
        linear = nn.Linear(*weight.shape, dtype=weight.dtype)
        linear.weight.data = weight.T
        linear.bias.data = parameters[f"bias.{layer}"][index][0]
        layers.append(linear)
        if layer == count - 1:
            break
        layers.append(activation)
        for place in "", "_after":
            if f"scale{place}.{layer}" in parameters:
                norm = nn.LayerNorm(weight.shape[1], dtype=weight.dtype)
                norm.weight.data = parameters[f"scale{place}.{layer}"][index][0]
                norm.bias.data = parameters[f"shift{place}.{layer}"][index][0]
                layers.insert(len(layers) - (place == ""), norm)
    return nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("layer_norm", "norm_after"), [(False, False), (True, False), (True, True)]
)
@pytest.mark.parametrize(
    ("activation", "of_torch"), [(torch.relu, nn.ReLU()), (nn.functional.silu, nn.SiLU())]
)
def test_every_network_is_the_torch_module_of_its_slice(
    layer_norm, norm_after, activation, of_torch
):
    lead = (2, 3)
    parameters = random_network(lead, SIZES, layer_norm, norm_after)
    inputs = torch.randn(*lead, 7, 3, dtype=torch.float64)
    outputs = mlp(parameters, inputs, activation)
    assert outputs.shape == (*lead, 7, 2)
    for index in product(*map(range, lead)):
        wanted = module(parameters, index, of_torch)(inputs[index])
        torch.testing.assert_close(outputs[index], wanted, rtol=1e-12, atol=1e-12)


def test_axes_of_size_one_are_shared_by_all_networks():
    parameters = random_network((2, 3), SIZES, layer_norm=True)
    inputs = torch.randn(2, 1, 7, 3, dtype=torch.float64)
    shared = mlp(parameters, inputs)
    repeated = mlp(parameters, inputs.repeat(1, 3, 1, 1))
    torch.testing.assert_close(shared, repeated, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("layer_norm", [False, True])
def test_scalar_network_is_the_only_column(layer_norm):
    parameters = random_network((2, 3), [3, 5, 4, 1], layer_norm)
    inputs = torch.randn(2, 3, 7, 3, dtype=torch.float64)
    values = scalar_mlp(parameters, inputs)
    assert values.shape == (2, 3, 7)
    torch.testing.assert_close(values, mlp(parameters, inputs)[..., 0], rtol=1e-12, atol=1e-12)
    one_row = scalar_mlp(parameters, inputs[:, :1])
    torch.testing.assert_close(
        one_row, mlp(parameters, inputs[:, :1])[..., 0], rtol=1e-12, atol=1e-12
    )


def test_many_rows_of_scalar_networks_are_run_one_network_after_another():
    parameters = random_network((2, 3), [3, 5, 4, 1], layer_norm=True)
    inputs = torch.randn(2, 1, ROWS_PER_NETWORK, 3, dtype=torch.float64)
    values = scalar_mlp(parameters, inputs)
    assert values.shape == (2, 3, ROWS_PER_NETWORK)
    few = scalar_mlp(parameters, inputs[:, :, :7])
    torch.testing.assert_close(values[..., :7], few, rtol=1e-12, atol=1e-12)


def test_hidden_features_stop_after_an_activation():
    parameters = random_network((1,), SIZES, layer_norm=False)
    inputs = torch.randn(1, 7, 3, dtype=torch.float64)
    wanted = module(parameters, (0,), nn.ReLU())[:4](inputs[0])
    found = hidden_features(parameters, inputs, torch.relu, 2)
    torch.testing.assert_close(found[0], wanted, rtol=1e-12, atol=1e-12)
    assert hidden_features(parameters, inputs, torch.relu, 0) is inputs
    assert num_layers(parameters) == 3


def test_initial_values_are_uniform_within_the_bound_of_each_layer():
    parameters = init_uniform([16, 400, 100], (3,), torch.Generator().manual_seed(0))
    for layer, fan_in in enumerate((16, 400)):
        bound = 1 / math.sqrt(fan_in)
        for name in f"weight.{layer}", f"bias.{layer}":
            value: Tensor = parameters[name]
            assert value.dtype == torch.float32
            assert value.abs().max() <= bound
            assert value.abs().max() > 0.95 * bound
            assert value.std() == pytest.approx(bound / math.sqrt(3), rel=0.1)
            assert abs(value.mean()) < 0.12 * bound
    assert parameters["weight.0"].shape == (3, 16, 400)
    assert parameters["bias.1"].shape == (3, 1, 100)
    assert not parameters["weight.0"][0].equal(parameters["weight.0"][1])


def test_same_generator_seed_same_network():
    one, same, other = (
        init_uniform([2, 3, 1], (), torch.Generator().manual_seed(seed)) for seed in (4, 4, 5)
    )
    assert all(one[name].equal(same[name]) for name in one)
    assert not any(one[name].equal(other[name]) for name in one)


def test_layer_norm_starts_as_the_identity_and_spares_the_head():
    parameters = init_uniform([2, 3, 4, 1], (5,), torch.Generator(), layer_norm=True)
    assert {name for name in parameters if name.startswith(("scale", "shift"))} == {
        "scale.0", "shift.0", "scale.1", "shift.1",
    }  # fmt: skip
    after = init_uniform([2, 3, 4, 1], (5,), torch.Generator(), layer_norm=True, norm_after=True)
    assert {name for name in after if name.startswith(("scale", "shift"))} == {
        "scale_after.0", "shift_after.0", "scale_after.1", "shift_after.1",
    }  # fmt: skip
    assert parameters["scale.1"].equal(torch.ones(5, 1, 4))
    assert parameters["shift.0"].equal(torch.zeros(5, 1, 3))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
    ids=str,
)
def test_only_half_precision_is_widened(given, wanted):
    assert at_least_float32(torch.ones(2, dtype=given)).dtype == wanted


@pytest.mark.parametrize(
    ("layer_norm", "norm_after"), [(False, False), (True, False), (True, True)]
)
def test_many_rows_go_through_one_network_after_another_to_the_same_result(layer_norm, norm_after):
    generator = torch.Generator().manual_seed(0)
    parameters = {
        name: value.double()[None]
        for name, value in init_uniform(
            (5, 8, 8, 3), (3,), generator, layer_norm, norm_after
        ).items()
    }
    parameters["other"] = torch.zeros(1, 4)  # of the ensemble, not of a layer
    for given in (1, 3), (1, 1):
        rows = torch.randn(*given, ROWS_PER_NETWORK, 5, generator=generator, dtype=torch.float64)
        whole = mlp(parameters, rows)
        assert whole.shape == (1, 3, ROWS_PER_NETWORK, 3)
        few = mlp(parameters, rows[..., :100, :])
        torch.testing.assert_close(whole[..., :100, :], few)
