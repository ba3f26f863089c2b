"""The transfer host of this room, and a run whose staging lies behind it."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.main import main
from tests.shipping import server as servers
from tests.shipping.server import HOST, Server

_NUMBER = itertools.count(1)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One sshd for all tests; each has a staging directory of its own there."""
    try:
        with servers.running(tmp_path_factory.mktemp("host")) as found:
            yield found
    except servers.NoServer as error:
        pytest.skip(str(error))


@dataclass
class Run:
    """A run.toml on this machine and its staging behind ssh."""

    toml: Path
    staging: Path
    server: Server
    capture: pytest.CaptureFixture[str]

    @property
    def inputs(self) -> Path:
        return self.staging / "segue" / "_inputs"

    @property
    def store(self) -> Path:
        return self.staging / "segue" / "demo"

    def write(self, **lines: str) -> None:
        """run.toml with these tables or keys replaced: top-level keys as `key="value"`, tables as `data="…"`."""
        top = {
            "name": '"demo"',
            "site": '"chtc"',
            "steps": "100",
            "user": f'"{self.server.user}"',
            "staging": f'"{self.staging}"',
            "transfer_host": f'"{HOST}"',
        }
        tables: dict[str, str] = {"trainer": 'recipe = "reference"', "data": 'dataset = "data"'}
        for key, value in lines.items():
            (tables if key in tables or "=" in value else top)[key] = value
        text = [f"{key} = {value}" for key, value in top.items() if value]
        text += [f"[{name}]\n{body}" for name, body in tables.items() if body]
        self.toml.write_text("\n".join(text) + "\n")

    def segue(self, *words: str, expect: int = 0) -> str:
        """Run a command on this run.toml; its stdout, or what it said on stderr when a failure is expected."""
        self.capture.readouterr()
        code = main([words[0], str(self.toml), *words[1:]])
        out, said = self.capture.readouterr()
        assert code == expect, said or out
        assert "Traceback" not in said
        return out if expect == 0 else said

    def json(self, *words: str) -> dict[str, Any]:
        found = json.loads(self.segue(*words, "--json"))
        assert isinstance(found, dict)
        return found

    def record(self) -> dict[str, Any]:
        found = json.loads(self.toml.with_name("run.staged.json").read_text())["inputs"]
        assert isinstance(found, dict)
        return found


@pytest.fixture
def run(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Run]:
    """A dataset of a few files, not staged yet."""
    staging = server.root / f"staging-{next(_NUMBER)}" / "b" / "bbadger"
    staging.mkdir(parents=True)
    tools = tmp_path / "client-bin"
    tools.mkdir()
    (tools / "rsync").symlink_to(server.programs.rsync)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("SEGUE_SSH", server.ssh())
    monkeypatch.delenv("STAGING", raising=False)
    here = tmp_path / "laptop"
    (here / "data" / "meta").mkdir(parents=True)
    (here / "data" / "meta" / "info.json").write_text("{}")
    (here / "data" / "episode.bin").write_bytes(bytes(range(256)) * 400)
    found = Run(here / "run.toml", staging, server, capsys)
    found.write()
    yield found


@pytest.fixture
def slow(run: Run, tmp_path: Path) -> Callable[[], None]:
    """Makes this machine's rsync a slow one, 1 MB a second, until the returned function is called."""
    tool = tmp_path / "client-bin" / "rsync"
    tool.unlink()
    tool.write_text(f'#!/bin/sh\nexec {run.server.programs.rsync} --bwlimit=1000 "$@"\n')
    tool.chmod(0o755)

    def over() -> None:
        tool.unlink()
        tool.symlink_to(run.server.programs.rsync)

    return over
