"""Named random streams: functions of (seed, stream, block) and of nothing else."""

from __future__ import annotations

import torch

from worldrl.random import draw, generator, stream_seed


def normals(count: int):
    return lambda g: torch.randn(count, generator=g)


def test_seeds_never_change():
    """Written down: a change here would change every run and refuse every resume."""
    assert stream_seed(0, "policy.noise", 0) == 6615565362341360470
    assert stream_seed(3, "rollout.start", 41) == 5391999359189982938


def test_seeds_are_63_bits_and_differ_in_every_part():
    seeds = {
        stream_seed(seed, stream, block)
        for seed in range(10)
        for stream in ("a", "b", "rollout.elite")
        for block in range(100)
    }
    assert len(seeds) == 10 * 3 * 100
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert max(seeds) > 2**62


def test_a_generator_is_its_name():
    one, same = generator(3, "noise", 7), generator(3, "noise", 7)
    assert torch.rand(5, generator=one).equal(torch.rand(5, generator=same))
    for other in generator(4, "noise", 7), generator(3, "noises", 7), generator(3, "noise", 8):
        fresh = torch.rand(5, generator=generator(3, "noise", 7))
        assert not fresh.equal(torch.rand(5, generator=other))
    assert torch.rand(5, generator=generator(3, "noise")).equal(
        torch.rand(5, generator=generator(3, "noise", 0))
    )


def test_streams_leave_the_global_generator_alone():
    torch.manual_seed(0)
    wanted = torch.rand(3)
    torch.manual_seed(0)
    draw([0, 1], "noise", 0, normals(10))
    assert torch.rand(3).equal(wanted)


def test_a_member_draws_what_its_lone_run_draws():
    together = draw([5, 6, 7], "noise", 2, normals(4))
    assert together.shape == (3, 4)
    for member, seed in enumerate((5, 6, 7)):
        assert draw([seed], "noise", 2, normals(4))[0].equal(together[member])
    reordered = draw([7, 5], "noise", 2, normals(4))
    assert reordered.equal(together[[2, 0]])


def test_blocks_can_be_drawn_in_any_order():
    forward = [draw([1], "noise", block, normals(3)) for block in range(5)]
    backward = [draw([1], "noise", block, normals(3)) for block in reversed(range(5))]
    assert all(a.equal(b) for a, b in zip(forward, reversed(backward), strict=True))


def test_neighbouring_seeds_are_uncorrelated():
    values = draw(list(range(20)), "noise", 0, normals(2000))
    correlation = torch.corrcoef(values) - torch.eye(20)
    assert correlation.abs().max() < 5 / 2000**0.5
