"""``worldrl evaluate`` on a run that was really trained."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from worldrl.cli.main import main
from worldrl.envs import make


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members of behaviour cloning, a few updates on Pendulum-v1."""
    folder = tmp_path_factory.mktemp("evaluate")
    env = make("Pendulum-v1")
    env.action_space.seed(0)
    rows: dict[str, list[object]] = {
        name: [] for name in ("observations", "actions", "rewards", "next_observations", "timeouts")
    }
    for episode in range(2):
        observation, _ = env.reset(seed=episode)
        for step in range(200):
            action = env.action_space.sample()
            following, reward, *_ = env.step(action)
            values = (observation, action, reward, following, step == 199)
            for column, value in zip(rows.values(), values, strict=True):
                column.append(value)
            observation = following
    env.close()
    columns = {name: np.array(column) for name, column in rows.items()}
    np.savez(folder / "data.npz", terminals=np.zeros(400, bool), **columns)
    arguments = (
        f"train bc dataset={folder / 'data.npz'} dataset.env_id=Pendulum-v1 num_updates=5 "
        f"population=2 learner.hidden=[8] compile=false threads=1 --out {folder / 'run'}"
    )
    assert main(arguments.split()) == 0
    return folder / "run"


def evaluated(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    code = main(["evaluate", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_json_is_the_last_line_and_has_what_others_rely_on(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = evaluated(capsys, str(run_dir), "--episodes", "2", "--seed", "3", "--json")
    assert code == 0
    assert len(out.splitlines()) == 1
    record = json.loads(out)
    keys = "return_mean return_std normalized_score episodes env_id seed members"
    assert set(keys.split()) <= set(record)
    assert (record["members"], record["episodes"], record["seed"]) == (2, 2, 3)
    assert record["env_id"] == "Pendulum-v1"
    assert record["normalized_score"] is None
    assert record["return_mean"] == pytest.approx(np.mean(record["returns"]))
    assert record["step"] == 5
    assert "2 deterministic episodes each, episode seed 3" in err
    line = json.loads((run_dir / "eval.jsonl").read_text().splitlines()[-1])
    assert line["returns"] == record["returns"]
    assert (line["stage"], line["step"]) == ("train", 5)


def test_scores_repeat_and_lines_add_up(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (run_dir / "eval.jsonl").read_text() if (run_dir / "eval.jsonl").exists() else ""
    results = [evaluated(capsys, str(run_dir), "--episodes", "1", "--json")[1] for _ in range(2)]
    assert results[0] == results[1]
    after = (run_dir / "eval.jsonl").read_text()
    assert after.startswith(before)
    assert after.count("\n") == before.count("\n") + 2
    assert main(["resume", str(run_dir)]) == 0  # which reads that file


def test_people_see_the_protocol(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = evaluated(capsys, str(run_dir), "--episodes", "1")
    assert code == 0
    assert "in Pendulum-v1: 2 members, 1 deterministic episodes each" in out


def test_the_last_good_policy_of_a_stopped_member_is_marked(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = evaluated(capsys, str(run_dir), "--episodes", "1", "--json")
    assert (code, json.loads(out)["stopped_by_guard"]) == (0, [False, False])
    arguments = (
        f"train sac dataset={run_dir.parent / 'data.npz'} dataset.env_id=Pendulum-v1 "
        f"num_updates=4 log_every=2 guard.value_bound=1e-6 learner.hidden=[8] threads=1 "
        f"--out {tmp_path / 'run'}"
    )
    assert main(arguments.split()) == 0
    capsys.readouterr()
    code, out, err = evaluated(capsys, str(tmp_path / "run"), "--episodes", "1", "--json")
    assert (code, json.loads(out)["stopped_by_guard"]) == (0, [True])
    assert "Marked: a guard stopped 1 of 1 member" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env-id", "Pendulumm-v1"], "did you mean Pendulum-v1"),
        (["--env-id", "HalfCheetah-v5"], "policy gives 1 continuous"),
        (["--env-id", "CartPole-v1"], "acts in Discrete"),
        (["--episodes", "0"], "--episodes"),
    ],
)
def test_bad_requests_are_one_paragraph_and_exit_2(
    run_dir: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = (run_dir / "eval.jsonl").read_text() if (run_dir / "eval.jsonl").exists() else ""
    code, out, err = evaluated(capsys, str(run_dir), *arguments)
    assert code == 2
    assert out == ""
    assert message in err
    assert "Traceback" not in err
    after = (run_dir / "eval.jsonl").read_text() if (run_dir / "eval.jsonl").exists() else ""
    assert after == before


def test_no_run_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = evaluated(capsys, str(tmp_path / "absent"))
    assert code == 2
    assert "no run directory" in err
