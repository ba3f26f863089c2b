"""The name and tags of run.toml, for a W&B run that its trainer named itself."""

from __future__ import annotations

import base64
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from agent.config import Wandb
from agent.errors import SegueError
from agent.wandb_label import Server, label
from tests.agent.support import Run, wait_for
from tests.agent.wandb_server import WandbServer

WANDB = Wandb("arm", "plain-0a1b", entity="lab", tags=("mine",), name="Place the cup", key_file="wandb.key")
KEY = "not-a-key-" + "k" * 30


def test_name_is_set_and_tags_are_added_and_nothing_else_is_touched() -> None:
    with WandbServer("exp", ["own"]) as server:
        label(Server(KEY, server.url), WANDB, "plain-0a1b")
        assert server.changes == [{"id": "aWQ=", "displayName": "Place the cup", "tags": ["own", "mine"]}]
        assert server.asked == [{"entity": "lab", "project": "arm", "run": "plain-0a1b"}]
        assert server.keys == {"Basic " + base64.b64encode(f"api:{KEY}".encode()).decode()}
        label(Server(KEY, server.url + "/"), WANDB, "plain-0a1b")
        assert len(server.changes) == 1, "what is right already is left alone"


def test_only_what_run_toml_says_is_changed_and_the_keys_own_entity_is_the_default() -> None:
    with WandbServer("exp", None) as server:
        label(Server(KEY, server.url), replace(WANDB, name=None, entity=None), "x")
        label(Server(KEY, server.url), replace(WANDB, tags=(), entity=None), "x")
        assert server.changes == [{"id": "aWQ=", "tags": ["mine"]}, {"id": "aWQ=", "displayName": "Place the cup"}]
        assert [asked["entity"] for asked in server.asked] == ["lab", "lab"]


@pytest.mark.parametrize(
    ("server", "why"),
    [(WandbServer("exp", [], down=True), "out of order"), (WandbServer("exp", [], exists=False), "no run lab/arm/x")],
)
def test_what_the_server_refuses_is_told_in_its_words(server: WandbServer, why: str) -> None:
    with server, pytest.raises(SegueError, match=why) as caught:
        label(Server(KEY, server.url), WANDB, "x")
    assert KEY not in str(caught.value)


def test_the_key_goes_to_no_other_server_that_an_answer_names() -> None:
    with WandbServer("exp", []) as other, WandbServer("exp", [], moved=f"{other.url}/graphql") as server:
        with pytest.raises(SegueError):
            label(Server(KEY, server.url), WANDB, "x")
        assert len(server.keys) == 1 and other.keys == {None}


def test_a_server_that_is_away_is_told_in_one_sentence() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and nobody listens
        with pytest.raises(SegueError, match="Connection refused"):
            label(Server(KEY, f"http://127.0.0.1:{bound.getsockname()[1]}"), WANDB, "x")


def attempt_at(tmp_path: Path, server: WandbServer, recipe: str, steps: int) -> Run:
    return Run(
        tmp_path,
        steps=steps,
        recipe=recipe,
        args=("step_s=0.01",),
        wandb=replace(WANDB, mode="online"),
        env={"WANDB_BASE_URL": server.url},
        telemetry_s=0.1,
    )


def scratch_with_key(tmp_path: Path) -> Path:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    (scratch / "wandb.key").write_text(KEY + "\n")
    return scratch


def test_the_agent_puts_the_run_right_once_it_trains(tmp_path: Path) -> None:
    with WandbServer("exp", ["own"]) as server:
        run = attempt_at(tmp_path, server, "labels", 100_000)
        with run.attempt(scratch=scratch_with_key(tmp_path)) as attempt:
            wait_for(lambda: server.changes, "the change")
            attempt.process.terminate()
            attempt.end()
        assert server.run["displayName"] == "Place the cup" and server.run["tags"] == ["own", "mine"]
        assert len(server.changes) == 1
        assert not [text for text in attempt.handover().get("warnings", []) if "W&B" in text]


def test_the_server_is_asked_through_the_proxy_that_the_trainer_is_given(tmp_path: Path) -> None:
    with WandbServer("exp", []) as proxy:
        run = attempt_at(tmp_path, proxy, "labels", 100_000)
        run.job = replace(run.job, env={"WANDB_BASE_URL": "http://wandb.invalid", "http_proxy": proxy.url})
        with run.attempt(scratch=scratch_with_key(tmp_path)) as attempt:
            wait_for(lambda: proxy.changes, "the change")
            attempt.process.terminate()
            attempt.end()


def test_a_server_that_refuses_is_one_warning_and_training_goes_on(tmp_path: Path) -> None:
    with WandbServer("exp", [], down=True) as server:
        run = attempt_at(tmp_path, server, "labels", 100_000)
        with run.attempt(scratch=scratch_with_key(tmp_path)) as attempt:
            attempt.saw("did not get the name and tags of run.toml")
            attempt.process.terminate()
            assert attempt.end() == 75
        (warning,) = [text for text in attempt.handover()["warnings"] if "name and tags" in text]
        assert "out of order" in warning and "training goes on" in warning
        assert len(server.keys) == 1 and KEY not in attempt.log()


def test_a_trainer_that_heeds_the_variables_is_left_alone(tmp_path: Path) -> None:
    with WandbServer("exp", []) as server:
        run = attempt_at(tmp_path, server, "plain", 60)
        with run.attempt(scratch=scratch_with_key(tmp_path)) as attempt:
            assert attempt.end() == 0
        assert server.keys == set()
