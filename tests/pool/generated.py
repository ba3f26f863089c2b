"""A run that segue itself generated, on a real pool: the `command` recipe with a small trainer in plain Python."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from dagman.pool import EmbeddedPool
from tests.pool.jobs import wait_until

SEGUE = [sys.executable, "-m", "cli.main"]
PATIENCE_S = 120.0

TRAINER = """
import os, sys, time
from pathlib import Path

step_s, end = float(sys.argv[1]), sys.argv[2:]
root = Path(os.environ["SEGUE_CHECKPOINT_DIR"])
stop = Path(os.environ["SEGUE_STOP_FILE"])
step, last = int(os.environ["SEGUE_RESUME_STEP"]), int(os.environ["SEGUE_LAST_STEP"])
interval = int(os.environ.get("SEGUE_SAVE_INTERVAL") or 5)
while step < last:
    time.sleep(step_s)
    step += 1
    print("step", step, flush=True)
    if end == ["crash", str(step)]:
        sys.exit("boom")
    stopping = stop.exists() and step >= int(stop.read_text())
    if step % interval == 0 or step == last or stopping:
        making = root / f"{step}.tmp"
        making.mkdir(parents=True)
        (making / "state").write_text(str(step))
        making.rename(root / str(step))
    if stopping:
        break
"""

SITE = """
title = "test pool"
default_class = "tiny"
retries = 2
avoid_failed_machine = {avoid}
scan_interval_s = 1
python = "{{this}}"
[staging]
path = "{{directory}}/staging"
[classes.tiny]
limit_s = {limit_s}
[classes.ample]
limit_s = 600
[margin]
fraction = 0.01
least_s = 0.3
kill_grace_s = 1
[defaults]
step_s = {step_s}
startup_s = 0.3
restore_s = 0.1
save_s = 0.01
publish_s = 0.1
queue_s = 1
[resources]
memory_mb = 256
disk_mb = 100
helper_memory_mb = 256
helper_disk_mb = 100
"""


class Generated:
    """A run directory with run.toml, site and trainer; `segue` and HTCondor's tools against the pool."""

    def __init__(
        self,
        pool: EmbeddedPool,
        directory: Path,
        *,
        steps: int,
        step_s: float = 0.05,
        queue_class: str = "ample",
        limit_s: float = 4.0,
        segments: str = "",
        args: tuple[str, ...] = (),
        avoid: bool = False,
        name: str = "run",
    ) -> None:
        self.pool, self.directory, self.name = pool, directory, name
        (directory / "code").mkdir()
        (directory / "code" / "train.py").write_text(TRAINER)
        site = SITE.format(limit_s=limit_s, step_s=step_s, avoid=str(avoid).lower())
        (directory / "site.toml").write_text(site)
        (directory / "run.toml").write_text(
            f'name = "{name}"\nsite = "site.toml"\nsteps = {steps}\ncode = "code"\n[trainer]\nrecipe = "command"\n'
            f"args = {json.dumps(['train.py', str(step_s), *args])}\n"
            f'options = {{ stops_on_request = true, clean = ["*.tmp"] }}\n[segments]\nclass = "{queue_class}"\n{segments}\n'
        )
        self.workflow = directory / name

    def segue(self, *words: str, check: bool = True, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """The command line, as the pool's user."""
        done = self.pool.run([*SEGUE, *words], cwd=cwd or self.directory, capture_output=True, text=True)
        assert done.returncode == 0 or not check, f"segue {words}: {done.stdout}{done.stderr}"
        return done

    def tool(self, *words: str, cwd: Path | None = None) -> str:
        """One of HTCondor's programs, which must succeed; its output."""
        done = self.pool.run(list(words), cwd=cwd or self.directory, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return str(done.stdout)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.segue("status", "run.toml", "--json").stdout)
        return found

    def wait(self, what: str, reached: Any, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        """Until the status is as wanted; the status then."""
        seen: list[dict[str, Any]] = []

        def look() -> bool:
            seen[:] = [self.status()]
            return bool(reached(seen[0]))

        try:
            wait_until(what, look, patience_s)
        except AssertionError as error:
            raise AssertionError(
                f"{what} did not happen ({error})\n{json.dumps(seen, indent=1)[-3000:]}\n{self.said()}"
            ) from None
        return seen[0]

    def wait_for_end(self, patience_s: float = PATIENCE_S) -> dict[str, Any]:
        return self.wait("the end of the DAG", lambda status: status["ended"], patience_s)

    def said(self) -> str:
        """For a failed test: what the jobs and DAGMan wrote last."""
        paths = [*sorted((self.workflow / "logs").glob("*.err")), self.workflow / f"{self.name}.dag.dagman.out"]
        return "\n".join(f"{path}:\n{path.read_text(errors='replace')[-1500:]}" for path in paths if path.exists())
