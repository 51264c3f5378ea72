"""An experience keeps the last refreshes of an imagination, and makes them again."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from worldrl.errors import RunError
from worldrl.imagination.experience import ImaginedExperience
from worldrl.types import LearnerState, Metrics, Parameters

EVERY, RETAIN, WIDTH = 10, 3, 4
CPU = torch.device("cpu")


class Printer:
    """Two members; rows that name their refresh and their policy."""

    capacity = 5

    def __init__(self) -> None:
        self.made: list[int] = []
        self.state = {"prepared": torch.zeros(2)}

    def prepare(self, number: int, learner: LearnerState) -> None:
        self.state["prepared"] += 1

    def sources(self, learner: LearnerState) -> Parameters:
        return learner

    def fill(self, rows: Tensor, number: int, sources: Parameters) -> tuple[Tensor, Metrics]:
        self.made.append(number)
        counts = torch.tensor([number % 3, 5])
        for member, count in enumerate(counts.tolist()):
            rows[member, :count] = 100.0 * number + sources["weight"][member]
        return counts, {"rows": counts.float()}


def experience_of(printer: Printer) -> ImaginedExperience:
    return ImaginedExperience(printer, 2, EVERY, RETAIN, WIDTH, CPU)


def policy_of(value: float) -> Parameters:
    return {"weight": torch.tensor([[value], [value + 1]])}


def held(experience: ImaginedExperience) -> list[list[float]]:
    """What each member may be given, by rank among its rows."""
    counts = experience.rows_held()
    found = []
    for member, count in enumerate(counts):
        uniform = torch.zeros(2, max(count, 1), dtype=torch.float64)
        uniform[member] = (torch.arange(max(count, 1)) + 0.5) / max(count, 1)
        rows = experience.rows[experience.indices(uniform)[member]]
        found.append(sorted(rows[:count, 0].tolist()))
    return found


def test_is_refreshed_once_an_interval_and_tells_when_next():
    printer = Printer()
    experience = experience_of(printer)
    updates = [0, 3, 9, 10, 11, 25, 39, 40]
    ends = [experience.renew(update, policy_of(update)) for update in updates]
    assert ends == [10, 10, 10, 20, 20, 30, 40, 50]
    assert printer.made == [0, 1, 2, 3, 4]


def test_holds_the_rows_of_the_last_refreshes_of_each_member():
    experience = experience_of(Printer())
    for update in range(0, 50, 10):
        experience.renew(update, policy_of(0.0))
    assert held(experience) == [[200.0, 200.0, 400.0], sorted([201.0, 301.0, 401.0] * 5)]
    assert experience.metrics["rows"].tolist() == [1.0, 5.0]


def test_a_policy_is_kept_as_it_was():
    experience, policy = experience_of(Printer()), policy_of(1.0)
    experience.renew(0, policy)
    policy["weight"].fill_(9.0)
    assert experience.tensors(policy)["0/weight"].flatten().tolist() == [1.0, 2.0]


def test_names_of_policies_do_not_depend_on_how_many_refreshes_there_were():
    experience = experience_of(Printer())
    before = set(experience.tensors(policy_of(0.0)))
    for update in range(0, 80, 10):
        experience.renew(update, policy_of(0.0))
        assert set(experience.tensors(policy_of(0.0))) == before
    assert before == {"0/weight", "1/weight", "2/weight", "imagination/prepared"}


@pytest.mark.parametrize("updates", [0, 1, 2, 5])
def test_can_be_made_again_from_its_policies(updates):
    first, second = experience_of(Printer()), experience_of(Printer())
    for update in range(updates):
        first.renew(10 * update, policy_of(float(update)))
    saved = {name: value.clone() for name, value in first.tensors(policy_of(0.0)).items()}
    second.expect(first.ledger(), policy_of(0.0))
    for name, value in second.tensors(policy_of(0.0)).items():
        value.copy_(saved[name])
    second.remake()
    assert held(second) == held(first)
    assert second.ledger() == first.ledger()
    assert saved["imagination/prepared"].tolist() == [updates, updates]
    assert second.renew(10 * updates, policy_of(7.0)) == first.renew(10 * updates, policy_of(7.0))
    assert held(second) == held(first)


def test_refuses_rows_that_come_out_differently():
    first, second = experience_of(Printer()), experience_of(Printer())
    first.renew(0, policy_of(3.0))
    second.expect(first.ledger(), policy_of(0.0))
    for value in second.tensors(policy_of(0.0)).values():
        value.fill_(0.0)
    with pytest.raises(RunError, match="came out differently"):
        second.remake()
