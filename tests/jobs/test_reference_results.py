"""Recording, comparing and evaluating: what the demonstration's last line is made of."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from agent.errors import BadInput
from jobs.reference import compare, evaluate
from jobs.reference.checkpoints import Saver, TrainState, read_parameters, restore
from jobs.reference.episodes import Episodes, find, join, load, save
from jobs.reference.reacher import NEAR, Arm, expert, success_rate
from jobs.reference.record import record
from tests.jobs.conftest import Programs


def test_the_same_seed_records_the_same_episodes(programs: Programs, tmp_path: Path) -> None:
    again = tmp_path / "again.npz"
    assert programs.run("record", "--out", again, "--episodes", "20").returncode == 0
    assert again.read_bytes() == programs.data.read_bytes()


def test_recorded_episodes_end_at_their_targets_though_disturbed_on_the_way(programs: Programs) -> None:
    episodes = load(programs.data)
    assert episodes.frames == 20 * 50
    distance = np.hypot(episodes.state[:, 8], episodes.state[:, 9]).reshape(20, 50)
    assert (distance[:, -1] <= NEAR).all()
    assert (distance[:, 0] > NEAR).mean() > 0.8


def test_without_disturbance_the_recorded_torques_replay_the_episode(tmp_path: Path) -> None:
    episodes, _ = record(3, 0, 50, camera=False, noise=0.0)
    with Arm() as arm:
        for number in range(3):
            arm.reset(number)
            for action in episodes.actions[episodes.episode == number]:
                arm.step(action)
            assert arm.distance() <= NEAR


def test_the_expert_always_arrives_and_an_arm_at_rest_hardly_ever() -> None:
    with Arm() as arm:
        assert success_rate(arm, expert, 30, 500) == 1.0
        assert success_rate(arm, lambda arm: np.zeros(2, np.float32), 30, 500) < 0.2


def test_success_is_two_centimetres() -> None:
    with Arm() as arm:
        arm.reset(3)
        arm.observation = np.array([*arm.observation[:8], 0.012, 0.0159])
        assert arm.distance() <= NEAR
        arm.observation = np.array([*arm.observation[:8], 0.0121, 0.016])
        assert arm.distance() > NEAR


def test_files_of_a_directory_are_joined_in_order_of_their_names(tmp_path: Path) -> None:
    parts = [
        Episodes(np.full((4, 3), k, np.float32), np.zeros((4, 2), np.float32), np.repeat([0, 1], 2)) for k in (1, 2)
    ]
    save(parts[1], tmp_path / "b.npz")
    save(parts[0], tmp_path / "a.npz")
    found = find(tmp_path)
    assert found.state[:, 0].tolist() == [1] * 4 + [2] * 4
    assert found.episode.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.npz", "b.npz"]


def test_files_that_do_not_fit_together_are_refused() -> None:
    one = Episodes(np.zeros((4, 3), np.float32), np.zeros((4, 2), np.float32), np.zeros(4, np.int32))
    other = Episodes(np.zeros((4, 6), np.float32), np.zeros((4, 2), np.float32), np.zeros(4, np.int32))
    with pytest.raises(BadInput, match="do not fit together"):
        join([one, other])


def flipped(straight: Path, root: Path, where: str) -> Path:
    """A copy of step 60 with one bit of one number changed."""
    state = restore(straight, 60)
    parameters = {name: dict(layer) for name, layer in read_parameters(straight / "60").items()}
    optimizer = [np.array(leaf) for leaf in state.optimizer]
    if where == "parameters":
        parameters["last"]["bias"] = np.array(parameters["last"]["bias"])
        parameters["last"]["bias"].view(np.uint32)[0] ^= 1
    else:
        largest = max(optimizer, key=lambda leaf: leaf.size)
        largest.reshape(-1).view(np.uint32)[5] ^= 1
    saver = Saver(root, 1)
    saver.save(TrainState(60, state.config, parameters, tuple(optimizer)))
    saver.finish()
    return root / "60"


@pytest.mark.parametrize("where", ["parameters", "optimizer"])
def test_compare_finds_one_flipped_bit(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    assert compare.main([str(straight / "60"), str(flipped(straight, tmp_path, where))]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out)["identical"] is False
    assert json.loads(output.out)["differences"] == 1
    assert "1 bytes differ" in output.err


def test_compare_accepts_a_copy_and_tells_steps_apart(
    straight: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(straight / "60", tmp_path / "60")
    assert compare.main([str(straight / "60"), str(tmp_path / "60")]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["identical"], told["steps"], told["optimizer"]) == (True, [60, 60], True)
    assert told["arrays"] > 20
    assert compare.main([str(straight / "60"), str(straight / "40")]) == 1


def test_evaluate_sets_a_policy_between_untrained_and_expert(
    programs: Programs, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(["--checkpoint", str(straight / "60"), "--episodes", "20"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["expert"] == 1.0
    assert told["untrained"] <= 0.2
    assert 0.0 <= told["policy"] <= 1.0
    assert (told["episodes"], told["step"]) == (20, 60)


def test_what_is_no_checkpoint_gets_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no checkpoint of the reference trainer"):
        compare.contents(tmp_path)
    other = tmp_path / "other.tar"
    other.write_bytes(bytes(10240))
    with pytest.raises(BadInput, match=r"other\.tar: it has no manifest"):
        compare.contents(other)
    with pytest.raises(BadInput, match="no such file or directory"):
        compare.contents(tmp_path / "nothing")
