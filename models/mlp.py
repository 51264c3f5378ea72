"""Multilayer perceptrons with leading axes: populations, ensembles and critics in one product.

A network is a flat dictionary ``weight.0, bias.0, weight.1, ...``, and with layer normalisation
``scale.i, shift.i`` where it stands before the activation or ``scale_after.i, shift_after.i`` where
it stands after it. Weights are ``(*lead, in, out)`` and biases ``(*lead, 1, out)``, where
``lead`` starts with the population axis P and may go on, e.g. with the members of an ensemble.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.init import orthogonal_

from worldrl.types import Parameters

Activation = Callable[[Tensor], Tensor]

#: Rows from which a CPU runs float32 networks one after another, each through all its layers: what
#: lies between two layers of one network then stays in cache.
ROWS_PER_NETWORK = 512

LAYER = ("weight", "bias", "scale", "shift", "scale_after", "shift_after")


def init_uniform(
    sizes: Sequence[int],
    lead: Sequence[int],
    generator: torch.Generator,
    layer_norm: bool = False,
    norm_after: bool = False,
) -> Parameters:
    """torch's default for linear layers, U(±1/sqrt(in)) on weights and biases.

    Args:
        sizes: input, hidden and output widths.
        lead: axes in front of every parameter, *without* P: callers stack members.
        norm_after: the layer normalisation stands after the activation, not before it.
    """
    device, place = generator.device, "_after" if norm_after else ""
    parameters: Parameters = {}
    for layer, (fan_in, fan_out) in enumerate(pairwise(sizes)):
        bound = fan_in**-0.5
        for name, shape in ("weight", (fan_in, fan_out)), ("bias", (1, fan_out)):
            draw = torch.rand(*lead, *shape, generator=generator, device=device)
            parameters[f"{name}.{layer}"] = (2 * draw - 1) * bound
        if layer_norm and layer < len(sizes) - 2:
            parameters[f"scale{place}.{layer}"] = torch.ones(*lead, 1, fan_out, device=device)
            parameters[f"shift{place}.{layer}"] = torch.zeros(*lead, 1, fan_out, device=device)
    return parameters


def init_head(parameters: Parameters, bound: float, generator: torch.Generator) -> None:
    """Hidden biases of 0.1 and a small uniform last layer, in place (An et al. 2021,
    arXiv 2110.01548, code)."""
    last = num_layers(parameters) - 1
    for layer in range(last):
        parameters[f"bias.{layer}"].fill_(0.1)
    for name in f"weight.{last}", f"bias.{last}":
        parameters[name].uniform_(-bound, bound, generator=generator)


def init_orthogonal(parameters: Parameters, generator: torch.Generator) -> None:
    """Orthogonal weights of gain sqrt(2), 0.01 in the last layer, and biases of 0, in place
    (Tarasov et al. 2022, arXiv 2210.07105, code of CQL)."""
    last = num_layers(parameters) - 1
    for layer in range(last + 1):
        weights = parameters[f"weight.{layer}"]
        for weight in weights.view(-1, *weights.shape[-2:]):
            orthogonal_(weight, 0.01 if layer == last else math.sqrt(2), generator)
        parameters[f"bias.{layer}"].zero_()


def stack(members: Sequence[Parameters]) -> Parameters:
    """Networks of the same shape as one, with a population axis in front."""
    return {name: torch.stack([one[name] for one in members]) for name in members[0]}


def part(parameters: Parameters, prefix: str) -> Parameters:
    """Those whose names begin so, without it: a network among others."""
    return {
        name.removeprefix(prefix): value
        for name, value in parameters.items()
        if name.startswith(prefix)
    }


def num_layers(parameters: Parameters) -> int:
    """Linear layers in the network."""
    return sum(name.startswith("weight.") for name in parameters)


def hidden_features(
    parameters: Parameters,
    inputs: Tensor,
    activation: Activation,
    layers: int,
    masks: Sequence[Tensor] = (),
) -> Tensor:
    """The first ``layers`` layers, each followed by ``activation``.

    Args:
        inputs: ``(*lead, B, in)``; axes of size 1 in ``lead`` broadcast.
        masks: ``(*lead, B, hidden)`` of every layer, multiplied with what it puts out; or none.

    Returns:
        ``(*lead, B, hidden)``.
    """
    hidden = inputs
    for layer in range(layers):
        hidden = hidden @ parameters[f"weight.{layer}"] + parameters[f"bias.{layer}"]
        hidden = _normalized(parameters, hidden, "", layer)
        hidden = _normalized(parameters, activation(hidden), "_after", layer)
        if masks:
            hidden = hidden * masks[layer]
    return hidden


def _normalized(parameters: Parameters, hidden: Tensor, place: str, layer: int) -> Tensor:
    """``hidden`` as it is, where the network has no layer normalisation in this place."""
    if f"scale{place}.{layer}" not in parameters:
        return hidden
    hidden = F.layer_norm(hidden, hidden.shape[-1:])
    return hidden * parameters[f"scale{place}.{layer}"] + parameters[f"shift{place}.{layer}"]


def mlp(parameters: Parameters, inputs: Tensor, activation: Activation = F.relu) -> Tensor:
    """``(*lead, B, in) -> (*lead, B, out)``, linear in the last layer."""
    if _faster_one_by_one(parameters, inputs):
        return _one_by_one(mlp, parameters, inputs, activation)
    last = num_layers(parameters) - 1
    hidden = hidden_features(parameters, inputs, activation, last)
    return hidden @ parameters[f"weight.{last}"] + parameters[f"bias.{last}"]


def _faster_one_by_one(parameters: Parameters, inputs: Tensor) -> bool:
    networks, rows = parameters["weight.0"].shape[:-2].numel(), inputs.shape[-2]
    # bfloat16 products batch well, and singly they do not.
    float32_on_cpu = inputs.device.type == "cpu" and not torch.is_autocast_enabled("cpu")
    return float32_on_cpu and networks > 1 and rows >= ROWS_PER_NETWORK


def _one_by_one(
    network: Callable[[Parameters, Tensor, Activation], Tensor],
    parameters: Parameters,
    inputs: Tensor,
    activation: Activation,
) -> Tensor:
    lead = parameters["weight.0"].shape[:-2]
    flat = inputs.expand(*lead, *inputs.shape[-2:]).flatten(0, -3)
    layers = {
        name: value.flatten(0, -3)
        for name, value in parameters.items()
        if name.partition(".")[0] in LAYER
    }
    # Slices, not elements: a product of two matrices would first copy the bias to its output.
    outputs = [
        network({name: value[i : i + 1] for name, value in layers.items()}, one, activation)
        for i, one in enumerate(torch.split(flat, 1))
    ]
    joined = torch.cat(outputs)
    return joined.view(*lead, *joined.shape[1:])


def scalar_mlp(parameters: Parameters, inputs: Tensor, activation: Activation = F.relu) -> Tensor:
    """``(*lead, B, in) -> (*lead, B)`` for networks of output width 1.

    The head is a multiply and a sum: a matrix product of width 1 runs at a few percent of peak.
    """
    if _faster_one_by_one(parameters, inputs):
        return _one_by_one(scalar_mlp, parameters, inputs, activation)
    last = num_layers(parameters) - 1
    hidden = hidden_features(parameters, inputs, activation, last)
    weight = parameters[f"weight.{last}"].squeeze(-1).unsqueeze(-2)  # (*lead, 1, hidden)
    return (hidden * weight).sum(-1) + parameters[f"bias.{last}"].squeeze(-1)


def at_least_float32(values: Tensor) -> Tensor:
    """Half precision, as autocast makes it, to float32; float32 and float64 as they are."""
    return values.to(torch.promote_types(values.dtype, torch.float32))
