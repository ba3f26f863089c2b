"""A trained policy behind the websocket, asked by the real openpi-client, and driving the arm through it."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from openpi_client import msgpack_numpy
from openpi_client.websocket_client_policy import WebsocketClientPolicy
from websockets.sync.client import connect

from agent.errors import BadInput, SegueError
from jobs.convert import aloha as aloha_reader
from jobs.reference import aloha, evaluate, wire
from jobs.reference.checkpoints import read_config, read_parameters
from jobs.reference.episodes import Episodes
from jobs.reference.policy import Actor, PolicyConfig, untrained
from jobs.reference.serve import Served
from jobs.serving.client import answers, ask, connected
from jobs.serving.observation import from_file, from_metadata
from tests.jobs.conftest import Programs

STATE = np.linspace(-0.5, 0.5, 10, dtype=np.float32)


@dataclass
class Running:
    """A server's process and what its JSON line said."""

    process: subprocess.Popen[str]
    told: dict[str, Any]

    @property
    def port(self) -> int:
        return int(self.told["port"])

    def client(self) -> contextlib.AbstractContextManager[Any]:
        return connected("127.0.0.1", self.port)


@contextlib.contextmanager
def started(programs: Programs, *arguments: str | Path) -> Iterator[Running]:
    process = subprocess.Popen(
        programs.command("serve", "--port", "0", *arguments),
        env=programs.environment({}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line, process.communicate()[1]
        yield Running(process, json.loads(line))
    finally:
        process.kill()
        process.communicate()


@pytest.fixture(scope="module")
def server(programs: Programs, straight: Path) -> Iterator[Running]:
    with started(programs, "--checkpoint", straight / "60") as running:
        yield running


def test_openpi_client_gets_the_actions_of_the_trained_policy(server: Running, straight: Path) -> None:
    actor = Actor(read_config(straight / "60"), read_parameters(straight / "60"))
    with server.client() as client:
        assert type(client) is WebsocketClientPolicy
        metadata = client.get_server_metadata()
        first = client.infer({"state": STATE})
        second = client.infer({"state": STATE})
    assert (metadata["step"], metadata["actions"]) == (60, [1, 2])
    assert metadata["observation"] == {"state": {"shape": [10], "dtype": "float32"}}
    assert first["actions"].shape == (1, 2)
    assert first["actions"].tolist() == [actor(STATE).tolist()]
    assert first["server_timing"].keys() == {"infer_ms"}
    assert second["server_timing"].keys() == {"infer_ms", "prev_total_ms"}


def test_two_robots_are_served_at_once(server: Running) -> None:
    with server.client() as one, server.client() as other:
        assert one.infer({"state": STATE})["actions"].tolist() == other.infer({"state": STATE})["actions"].tolist()


def test_the_health_check_answers(server: Running) -> None:
    assert answers("127.0.0.1", server.port)


def test_it_listens_on_this_machine_alone_unless_told_otherwise(server: Running) -> None:
    wanted = f":{server.port:04X}"
    lines = [
        line.split() for path in ("/proc/net/tcp", "/proc/net/tcp6") for line in Path(path).read_text().splitlines()
    ]
    listening = [words[1] for words in lines if words[1].endswith(wanted) and words[3] == "0A"]
    assert listening == [f"0100007F{wanted}"]


@pytest.mark.parametrize(
    ("observation", "sentence"),
    [
        ({"joints": STATE}, "the observation has no 'state' (there: joints); needed is 'state' float32[10]"),
        ({"state": STATE[:4]}, "'state' is float32[4] in the observation; needed is 'state' float32[10]"),
        ({"state": "stretched"}, "'state' is <U9[] in the observation"),
        ({"state": np.full(10, np.nan)}, "'state' of the observation holds a value that is not finite"),
        ({}, "the observation has no 'state' (there: nothing)"),
    ],
)
def test_a_bad_observation_is_answered_by_a_sentence_and_the_server_goes_on(
    server: Running, observation: dict[str, Any], sentence: str
) -> None:
    with server.client() as client, pytest.raises(RuntimeError) as refused:
        client.infer(observation)
    assert sentence in str(refused.value)
    assert "Traceback" not in str(refused.value)
    with server.client() as client:
        assert client.infer({"state": STATE})["actions"].shape == (1, 2)


@pytest.mark.parametrize("frame", ["a text", b"\xc1", msgpack_numpy.packb([1, 2]), b""])
def test_a_frame_that_is_no_observation_is_answered_by_a_sentence(server: Running, frame: str | bytes) -> None:
    with connect(f"ws://127.0.0.1:{server.port}") as connection:
        connection.recv()
        connection.send(frame)
        answer = connection.recv()
    assert isinstance(answer, str)
    assert "observation" in answer or "message" in answer


def test_a_client_that_vanishes_does_not_disturb(server: Running) -> None:
    raw = socket.create_connection(("127.0.0.1", server.port))
    raw.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
    raw.close()
    with server.client() as client:
        client._ws.socket.shutdown(socket.SHUT_RDWR)
    with server.client() as client:
        assert client.infer({"state": STATE})["actions"].shape == (1, 2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly_with_a_client_connected(
    programs: Programs, straight: Path, number: signal.Signals
) -> None:
    with started(programs, "--checkpoint", straight) as running, running.client() as client:
        client.infer({"state": STATE})
        running.process.send_signal(number)
        _, said = running.process.communicate(timeout=30)
        assert (running.process.returncode, said) == (0, "")


def test_a_taken_port_is_one_sentence(programs: Programs, straight: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        done = programs.run("serve", "--checkpoint", straight, "--port", str(port))
    assert done.returncode == 1
    assert done.stderr == (
        f"segue: error: port {port} of 127.0.0.1 is taken by another program; give --port another number\n"
    )


def test_what_is_no_checkpoint_or_no_port_is_one_sentence(programs: Programs, straight: Path, tmp_path: Path) -> None:
    for words, sentence in (
        (["--checkpoint", tmp_path], "no checkpoint of the reference trainer"),
        (["--checkpoint", straight, "--port", "65536"], "a port is a number from 0 to 65535"),
    ):
        done = programs.run("serve", *words)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_driven_through_the_websocket_the_arm_does_what_it_does_without(
    programs: Programs, server: Running, straight: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    done = programs.run("drive", "--port", str(server.port), "--episodes", "10", "--seed", "50", "--expert")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert evaluate.main(["--checkpoint", str(straight / "60"), "--episodes", "10", "--seed", "50"]) == 0
    without = json.loads(capsys.readouterr().out)
    assert told["policy"] == without["policy"]
    assert (told["expert"], told["episodes"], told["step"]) == (1.0, 10, 60)
    assert told["latency_ms"] > 0


def test_the_untrained_network_has_the_same_shape_and_other_actions(
    programs: Programs, server: Running, straight: Path
) -> None:
    with started(programs, "--checkpoint", straight / "60", "--untrained") as beside:
        assert beside.told["step"] == 0
        with beside.client() as client, server.client() as trained:
            assert client.get_server_metadata()["observation"] == trained.get_server_metadata()["observation"]
            assert (
                client.infer({"state": STATE})["actions"].tolist()
                != trained.infer({"state": STATE})["actions"].tolist()
            )


def test_driving_without_a_server_is_one_sentence(programs: Programs) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        done = programs.run("drive", "--port", str(unused.getsockname()[1]), "--wait", "0")
    assert done.returncode == 1
    assert "no policy server answers on 127.0.0.1" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_policy_with_a_camera_takes_frames_of_its_size_and_type() -> None:
    config = PolicyConfig(6, 2, 8, 64, (0.0,) * 6, (1.0,) * 6)
    served = Served(Actor(config, untrained(config)), 7)
    frame = np.zeros((64, 64, 3), np.uint8)
    assert served.infer({"state": STATE[:6], "image": frame, "prompt": "ignored"})["actions"].shape == (1, 2)
    assert from_metadata(served.metadata) is not None
    with pytest.raises(BadInput, match=r"'image' is float32 in the observation"):
        served.infer({"state": STATE[:6], "image": frame.astype(np.float32)})
    with pytest.raises(BadInput, match=r"'image' is uint8\[32, 64, 3\]"):
        served.infer({"state": STATE[:6], "image": frame[:32]})


ARRAYS = hnp.arrays(
    st.sampled_from([np.float32, np.float64, np.uint8, np.int64, np.bool_]), hnp.array_shapes(min_dims=0, min_side=0)
)


@given(ARRAYS)
def test_arrays_travel_in_openpis_own_way_in_both_directions(array: Any) -> None:
    for packed, unpack in (
        (wire.encode({"a": array}), msgpack_numpy.unpackb),
        (msgpack_numpy.packb({"a": array}), wire.decode),
    ):
        found = unpack(packed)["a"]
        assert (found.dtype, found.shape) == (array.dtype, array.shape)
        assert found.tobytes() == array.tobytes()


def test_damaged_and_dangerous_arrays_are_refused() -> None:
    for dtype, shape in (("|O", (1,)), ("<f4", (3,)), ("nonsense", (1,)), ("<f4", "x")):
        packed = msgpack_numpy.msgpack.packb(
            {b"__ndarray__": True, b"data": b"12345678", b"dtype": dtype, b"shape": shape}
        )
        with pytest.raises(BadInput, match="an array in the message is damaged"):
            wire.decode(packed)


def test_an_observation_is_read_from_json_and_from_npz(tmp_path: Path) -> None:
    (tmp_path / "o.json").write_text(
        json.dumps({"state": [0.5, 1.5], "images": {"top": {"shape": [2, 2, 3], "dtype": "uint8"}}, "prompt": "reach"})
    )
    found = from_file(tmp_path / "o.json")
    assert found["state"].dtype == np.float32
    assert found["images"]["top"].shape == (2, 2, 3)
    assert found["prompt"] == "reach"
    np.savez(
        tmp_path / "o.npz",
        **{"images.top": np.ones((2, 2, 3), np.uint8), "observation/state": STATE, "prompt": np.array("reach")},
    )
    found = from_file(tmp_path / "o.npz")
    assert found["images"]["top"].sum() == 12
    assert (found["observation/state"].shape, found["prompt"]) == ((10,), "reach")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("o.txt", "", "must be a .json or an .npz file"),
        ("o.json", "{", "cannot be read"),
        ("o.json", "[]", "it holds no map of names"),
        ("o.json", '{"a": {"shape": [-1], "dtype": "uint8"}}', "'a' is no array that can be sent"),
        ("o.json", '{"a": {"shape": [1], "dtype": "object"}}', "'a' is no array that can be sent"),
        ("o.json", '{"a": {"b": [[1], [1, 2]]}}', "'b' is a list whose rows differ in length"),
        ("o.json", '{"a": ["x"]}', "'a' is a list of something else than numbers"),
        ("o.npz", "no zip", "cannot be read"),
        ("missing.json", None, "No such file or directory"),
    ],
)
def test_an_unreadable_observation_is_one_sentence(tmp_path: Path, name: str, text: str | None, sentence: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(BadInput) as refused:
        from_file(tmp_path / name)
    assert sentence in str(refused.value)
    assert name in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_answer_without_actions_is_refused() -> None:
    class Silent:
        def infer(self, observation: dict[str, Any]) -> dict[str, Any]:
            return {"torques": 1}

    with pytest.raises(SegueError, match=r"has no actions \(horizon, dimensions\)"):
        ask(Silent(), {})


def test_recorded_episodes_are_read_back_by_the_converter_as_aloha(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    episodes = Episodes(
        random.normal(size=(6, 6)).astype(np.float32),
        random.normal(size=(6, 2)).astype(np.float32),
        np.repeat([0, 1], 3).astype(np.int32),
        random.integers(0, 256, (6, 64, 64, 3), dtype=np.uint8),
    )
    aloha.write(episodes, tmp_path / "out", "reach")
    found = aloha_reader.episodes(tmp_path / "out")
    assert [ref.name for ref in found] == ["episode_000000", "episode_000001"]
    with aloha_reader.open_episode(found[1]) as episode:
        assert episode.task == "reach"
        assert np.array_equal(episode.vectors["observation.state"], episodes.state[3:])
        assert np.array_equal(episode.vectors["action"], episodes.actions[3:])
        assert episodes.images is not None
        assert np.array_equal(episode.cameras["observation.images.top"].frame(2), episodes.images[5])
    with pytest.raises(BadInput, match="is not empty"):
        aloha.write(episodes, tmp_path / "out", "reach")
