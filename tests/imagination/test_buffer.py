"""The ring of imagined rows: uniform over what is held, and nothing else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldrl.errors import ConfigError
from worldrl.imagination import buffer as module
from worldrl.imagination.buffer import SyntheticBuffer, available_memory, check_memory

CPU = torch.device("cpu")


def filled(counts: list[list[int]], capacity: int) -> SyntheticBuffer:
    """Row ``[member, slot, number, 0]`` where something was written, NaN elsewhere."""
    retain = len(counts[0])
    buffer = SyntheticBuffer(len(counts), retain, capacity, 4, CPU)
    buffer.rows.fill_(torch.nan)
    for slot in range(retain):
        for member, own in enumerate(counts):
            for number in range(own[slot]):
                buffer.slot(slot)[member, number] = torch.tensor([member, slot, number, 0.0])
        buffer.set_count(slot, torch.tensor([own[slot] for own in counts]))
    return buffer


def grid(points: int, members: int) -> Tensor:
    """The middles of ``points`` equal parts of [0, 1), the same for every member."""
    middles = (torch.arange(points, dtype=torch.float64) + 0.5) / points
    return middles.expand(members, points)


@pytest.mark.parametrize(
    "counts",
    [
        [[4, 4, 4]],
        [[3, 0, 2]],
        [[0, 0, 1]],
        [[0, 4, 0]],
        [[1, 0, 0]],
        [[4, 1, 3], [0, 0, 2], [2, 4, 0], [4, 4, 4]],
        [[2], [3]],
    ],
)
def test_every_held_row_is_drawn_equally_often_and_no_other(counts):
    buffer = filled(counts, capacity=4)
    times = 6
    for member, own in enumerate(counts):
        total = sum(own)
        uniform = grid(times * total, len(counts))
        drawn = buffer.flat_rows[buffer.indices(uniform)[member]]
        assert drawn.isfinite().all()
        found = {tuple(row.tolist()) for row in drawn}
        assert found == {
            (member, slot, number, 0.0) for slot, rows in enumerate(own) for number in range(rows)
        }
        assert all((drawn == torch.tensor(row)).all(1).sum() == times for row in found)


def test_extreme_uniforms_stay_inside():
    buffer = filled([[3, 1, 2], [0, 4, 1]], capacity=4)
    for value, wanted in {
        0.0: [[0, 0, 0, 0], [1, 1, 0, 0]],
        1 - 2**-53: [[0, 2, 1, 0], [1, 2, 0, 0]],  # the largest that torch draws
    }.items():
        uniform = torch.full((2, 1), value, dtype=torch.float64)
        assert buffer.flat_rows[buffer.indices(uniform)][:, 0].tolist() == wanted


def test_random_draws_are_uniform_over_unequal_slots():
    counts = [[5, 0, 2, 7], [1, 7, 7, 0]]
    buffer = filled(counts, capacity=7)
    draws = 40_000
    uniform = torch.rand(2, draws, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    indices = buffer.indices(uniform)
    for member, own in enumerate(counts):
        frequency = torch.bincount(indices[member], minlength=2 * 28).double() / draws
        held = frequency[frequency > 0]
        expected = 1 / sum(own)
        assert len(held) == sum(own)
        assert (held - expected).abs().max() < 5 * (expected / draws) ** 0.5


def test_any_shape_of_uniforms_is_served():
    buffer = filled([[3, 1], [2, 2]], capacity=3)
    uniform = torch.rand(2, 5, 4, dtype=torch.float64)
    indices = buffer.indices(uniform)
    assert indices.shape == (2, 5, 4)
    assert indices.equal(buffer.indices(uniform.flatten(1)).view(2, 5, 4))


def test_a_large_buffer_reaches_its_last_rows():
    """float32 numbers would name only every eighth of 100 million rows."""
    buffer = SyntheticBuffer(1, 2, 1, 1, CPU)
    buffer.capacity = 100_000_000
    buffer.counts.fill_(buffer.capacity)
    uniform = torch.tensor([[0.999999985, 0.99999998, 0.999999995]], dtype=torch.float64)
    assert buffer.indices(uniform).tolist() == [[199_999_997, 199_999_996, 199_999_999]]


@pytest.mark.parametrize("retain", [1, 5])
def test_rotates(retain):
    """After every refresh exactly the last ``retain`` are there, of full and short ones alike."""
    capacity, members = 6, 2
    buffer = SyntheticBuffer(members, retain, capacity, 3, CPU)
    short = [6, 2, 5, 1, 6, 3, 1, 4, 6, 2, 6, 5]
    for refresh in range(12):
        counts = torch.tensor([short[refresh], 6])
        for member in range(members):
            buffer.slot(refresh)[member, : counts[member]] = float(refresh)
        buffer.set_count(refresh, counts)
        recent = range(max(0, refresh - retain + 1), refresh + 1)
        for member in range(members):
            sizes = [int((6, short[r])[member == 0]) for r in recent]
            assert sum(sizes) > 0
            uniform = grid(3 * sum(sizes), members)
            drawn = buffer.flat_rows[buffer.indices(uniform)[member], 0]
            for number, size in zip(recent, sizes, strict=True):
                assert (drawn == number).sum() == 3 * size
            assert drawn.min() >= recent[0]


def test_slots_and_flat_rows_are_views():
    buffer = SyntheticBuffer(2, 3, 4, 5, CPU)
    buffer.slot(4)[1, 2] = 7.0
    assert buffer.flat_rows.data_ptr() == buffer.rows.data_ptr()
    assert buffer.flat_rows[12 + 4 + 2].tolist() == [7.0] * 5
    assert buffer.rows.count_nonzero() == 5


def test_too_little_memory_is_refused_before_anything_is_allocated(monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda device: 2**30)
    monkeypatch.setattr(torch, "zeros", None)  # would fail if it came to that
    with pytest.raises(ConfigError) as refusal:
        SyntheticBuffer(8, 5, 250_000, 42, CPU)
    message = str(refusal.value)
    assert "needs 1.6 GiB on cpu and 1.0 GiB is free" in message  # 8 * 5 * 250,000 * 42 * 4 bytes
    for setting in "batch_size", "horizon", "retain":
        assert f"imagination.{setting}" in message
    assert "population" in message


def test_enough_or_unknown_memory_is_no_obstacle(monkeypatch):
    monkeypatch.setattr(module, "available_memory", lambda device: 100)
    check_memory(100, CPU)
    with pytest.raises(ConfigError):
        check_memory(101, CPU)
    monkeypatch.setattr(module, "available_memory", lambda device: None)
    check_memory(2**60, CPU)


def test_free_memory_of_this_machine():
    free = available_memory(CPU)
    assert free is None or 2**20 < free < 2**50


def test_a_container_has_no_more_than_its_limit(tmp_path):
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    (tmp_path / "memory.max").write_text("1000\n")
    assert module._free_of_the_container(tmp_path) == 400
    (tmp_path / "memory.max").write_text("max\n")
    assert module._free_of_the_container(tmp_path) is None
    assert module._free_of_the_container(tmp_path / "none") is None
