"""Groups, their joined tensors, and when functions are compiled."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch

from worldrl.errors import ConfigError, RunError
from worldrl.optim import AdamState
from worldrl.training import compilation
from worldrl.training.compilation import compiled, compiler_available, should_compile
from worldrl.training.stages import common_step, copy_into, flat, group_seeds, join, split

CPU = torch.device("cpu")


class Group(NamedTuple):
    step: int
    finished: bool


def test_members_are_groups_of_one_on_a_cpu_and_one_group_elsewhere():
    assert group_seeds(7, 3, CPU) == [[7], [8], [9]]
    assert group_seeds(7, 3, torch.device("cuda")) == [[7, 8, 9]]


@pytest.mark.parametrize(
    ("groups", "wanted"),
    [
        ([(5, False)], 5),
        ([(5, False), (3, False)], 3),
        ([(5, False), (3, True)], 5),  # the other one stopped early
        ([(5, True), (9, True)], 9),
    ],
)
def test_a_stage_is_as_far_as_every_group_that_goes_on(groups, wanted):
    assert common_step([Group(*group) for group in groups]) == wanted  # type: ignore[misc]


def test_flat_names_lead_to_the_tensors_themselves():
    first, second, count = torch.zeros(1), torch.ones(1), torch.tensor([2.0])
    tree = {"a": {"w.0": first}, "adam": AdamState({"w.0": first}, {"w.0": second}, count)}
    found = flat(tree)
    assert set(found) == {"a/w.0", "adam/first/w.0", "adam/second/w.0", "adam/steps"}
    assert found["a/w.0"] is first
    assert found["adam/second/w.0"] is second
    assert flat({}) == {}


@pytest.mark.parametrize("sizes", [[1], [3], [1, 1, 1], [2, 3]])
def test_split_undoes_join(sizes):
    parts = [{"a": torch.randn(size, 4), "b": torch.randn(size)} for size in sizes]
    joined = join(parts)
    assert joined["a"].shape == (sum(sizes), 4)
    for part, found in zip(parts, split(joined, sizes), strict=True):
        assert part.keys() == found.keys()
        assert all(part[name].equal(found[name]) for name in part)


def test_joined_tensors_are_copies_even_of_one_group():
    part = {"a": torch.zeros(2, 3)}
    joined = join([part])
    part["a"].fill_(1.0)
    assert not joined["a"].any()


def test_copying_keeps_the_tensors():
    target = {"a": torch.zeros(2), "b": torch.zeros(1)}
    before = target["a"]
    copy_into(target, {"a": torch.ones(2), "b": torch.ones(1), "more": torch.ones(1)})
    assert target["a"] is before
    assert before.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("source", [{"a": torch.ones(2)}, {"a": torch.ones(2), "b": torch.ones(3)}])
def test_tensors_of_another_version_are_refused_and_change_nothing(source):
    target = {"a": torch.zeros(2), "b": torch.zeros(1)}
    with pytest.raises(RunError, match="does not hold 'b'"):
        copy_into(target, source)
    assert not target["a"].any()


def test_auto_compiles_long_runs_where_there_is_a_compiler(monkeypatch):
    assert should_compile(True, 1, 1000, CPU)
    assert not should_compile(False, 10**9, 1000, CPU)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: "/usr/bin/g++")
    assert compiler_available(CPU)
    assert not should_compile("auto", 999, 1000, CPU)
    assert should_compile("auto", 1000, 1000, CPU)
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    assert not compiler_available(CPU)
    assert not should_compile("auto", 1000, 1000, CPU)


def test_a_function_that_is_not_compiled_is_itself():
    def double(value: torch.Tensor) -> torch.Tensor:
        return 2 * value

    assert compiled(double, False, CPU) is double


def test_closures_of_one_definition_get_code_of_their_own():
    """torch.compile caches by code object, and without guards would mix them up."""

    def times(factor: float):
        def scale(value: float, *, offset: float = 1.0) -> float:
            return factor * value + offset

        return scale

    two, three = times(2.0), times(3.0)
    assert two.__code__ is three.__code__
    own_two, own_three = compilation._private_copy(two), compilation._private_copy(three)
    assert own_two.__code__ is not own_three.__code__
    assert (own_two(10.0), own_three(10.0, offset=0.0)) == (21.0, 30.0)


def test_compiling_without_a_compiler_is_refused(monkeypatch):
    monkeypatch.setattr(compilation.shutil, "which", lambda name: None)
    with pytest.raises(ConfigError, match=r"compile=true needs a C\+\+ compiler"):
        compiled(lambda value: value, True, CPU)
