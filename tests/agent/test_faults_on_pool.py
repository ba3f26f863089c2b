"""Every disturbance that a pool knows, one after the other in one chain: nothing is lost, nothing is left over."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from agent.config import Wandb
from dagman.pool import EmbeddedPool
from tests.agent.chain import Chain
from tests.agent.second_user import SecondUser, command_lines, files_with
from tests.agent.support import Run, alive, state_after, wait_for
from tests.conftest import outside_tmp

STEPS = 900

pytestmark = [pytest.mark.pool, pytest.mark.slow]


@pytest.fixture(scope="module")
def pool() -> Iterator[EmbeddedPool]:
    """As an access point: every user may read the queue."""
    directory = Path(tempfile.mkdtemp(prefix="p-", dir=outside_tmp()))
    with EmbeddedPool(directory, config={"ALLOW_READ": "*"}) as running:
        yield running
    shutil.rmtree(directory, ignore_errors=True)


def job_id(chain: Chain) -> str:
    return chain.tool("condor_q", "-constraint", "JobUniverse == 5", "-af:j", "JobStatus").split()[0]


def vacate(chain: Chain) -> None:
    chain.tool("condor_vacate_job", job_id(chain))


def vacate_fast(chain: Chain) -> None:
    chain.tool("condor_vacate_job", "-fast", job_id(chain))


def drain(chain: Chain) -> None:
    before = chain.epoch()
    slot = next(name for name in chain.tool("condor_status", "-af", "Name").split() if "_" not in name)
    chain.tool("condor_drain", "-graceful", "-resume-on-completion", slot)
    chain.wait("the drain", lambda: not chain.processes() or chain.epoch() > before)


def hold_and_release(chain: Chain) -> None:
    job = job_id(chain)
    chain.tool("condor_hold", job)
    chain.wait("the hold", lambda: chain.tool("condor_q", job, "-af", "JobStatus").strip() == "5")
    chain.tool("condor_release", job)


def kill(role: str) -> Callable[[Chain], None]:
    def disturb(chain: Chain) -> None:
        os.kill(chain.cast()[role], signal.SIGKILL)

    disturb.__name__ = f"kill_{role}"
    return disturb


NEW_ATTEMPT = [vacate, vacate_fast, drain, hold_and_release, kill("agent"), kill("starter"), kill("shadow")]
SAME_ATTEMPT = [kill("trainer"), kill("worker")]


def test_a_chain_survives_every_disturbance(pool: EmbeddedPool, workdir: Path) -> None:
    args = ("step_s=0.02", "workers=1")
    run = Run(workdir, steps=STEPS, args=args, save_interval=25, limit_s=600.0)
    chain = Chain(pool, run, 2)
    chain.submit()
    for disturb in SAME_ATTEMPT:
        chain.running()
        step = chain.newest()[1]
        disturb(chain)
        chain.wait(f"progress after {disturb.__name__}", lambda step=step: chain.newest()[1] > step)
    for disturb in NEW_ATTEMPT:
        chain.running()
        before = chain.epoch()
        disturb(chain)
        chain.wait(f"a new attempt after {disturb.__name__}", lambda before=before: chain.epoch() > before)
    assert chain.wait_for_end() == "0", chain.said()
    assert chain.newest()[1] == STEPS
    assert chain.final_state() == state_after(STEPS)
    wait_for(lambda: not any(alive(pid) for pid in chain.processes()), "the end of all processes")
    leftovers = [path.name for path in (run.store / "checkpoints").iterdir() if path.name.startswith(".")]
    assert leftovers == []


KEY = "not-a-key-" + "s" * 30


def test_the_key_is_nowhere_but_in_the_trainer_and_a_live_run_shows_its_step(pool: EmbeddedPool, workdir: Path) -> None:
    """Ads and history as another user of the access point sees them; files with the owner's eyes, who may read more."""
    wandb = Wandb("arm", "plain-1", mode="offline", key_file="wandb.key")
    run = Run(
        workdir,
        steps=100_000,
        args=("step_s=0.02", "print_env=1", "workers=1"),
        limit_s=600.0,
        wandb=wandb,
        telemetry_s=0.5,
    )
    key = workdir / "wandb.key"
    key.touch(mode=0o600)
    key.write_text(KEY + "\n")
    chain = Chain(pool, run, 1, more_inputs=", wandb.key")
    chain.submit()
    chain.running()
    cast = chain.cast()
    assert KEY.encode() in Path(f"/proc/{cast['trainer']}/environ").read_bytes()
    assert KEY.encode() not in command_lines()
    assert files_with(pool.directory, KEY.encode(), key) == []
    job = job_id(chain)
    chain.wait("the step in the job ad", lambda: chain.tool("condor_q", job, "-af", "ChirpStep").strip().isdigit())
    assert int(chain.tool("condor_q", job, "-af", "ChirpSteps")) == 100_000
    chain.wait("the time left", lambda: chain.tool("condor_q", job, "-af", "ChirpEta").strip().isdigit())
    assert int(chain.tool("condor_q", job, "-af", "ChirpEta")) > time.time()
    other = SecondUser(pool, workdir / "other")
    ads = other.sees("condor_q", "-allusers", "-l")
    assert "ChirpStep" in ads and KEY not in ads
    assert KEY not in other.sees("condor_status", "-l")
    chain.tool("condor_rm", "-all")
    wait_for(lambda: not any(alive(pid) for pid in chain.processes()), "the end of all processes")
    wait_for(lambda: "DAGNodeName" in chain.tool("condor_history", "-l"), "the job in the history")
    assert KEY not in chain.tool("condor_history", "-l")
    assert files_with(workdir, KEY.encode(), key) == []
    assert files_with(pool.directory, KEY.encode(), key) == []


def test_a_segment_ends_before_htcondors_own_limit_on_the_execution(pool: EmbeddedPool, workdir: Path) -> None:
    run = Run(workdir, steps=100_000, args=("step_s=0.02",), limit_s=600.0, margin_s=3.0)
    chain = Chain(pool, run, 1, more_lines="allowed_execute_duration = 15")
    chain.submit()
    assert chain.wait_for_end() == "0", chain.said()
    handover = json.loads((workdir / "segment-0.json").read_text())
    assert (handover["state"], handover["redone_steps"]) == ("time-used", 0)
    assert 5 < handover["ended"] - handover["began"] < 15
    assert "(AllowedExecuteDuration)" in (workdir / "segment-0.err").read_text()
    assert "Job was held" not in (workdir / "events.log").read_text()


def test_without_a_mounted_staging_htcondor_moves_the_store_through_restarts_and_an_eviction(
    pool: EmbeddedPool, workdir: Path
) -> None:
    run = Run(
        workdir,
        steps=400,
        args=("step_s=0.01", "workers=1", "print_env=1"),
        staging="",
        checkpoint_exit=True,
        save_interval=100,
        limit_s=600.0,
        wandb=Wandb("arm", "plain-1", mode="offline", key_file="wandb.key"),
    )
    more = "checkpoint_exit_code = 85\ntransfer_checkpoint_files = segue-store, handover.json"
    key = workdir / "wandb.key"
    key.write_text(KEY + "\n")
    chain = Chain(pool, run, 1, more_inputs=", wandb.key", more_outputs=", segue-store", more_lines=more)
    chain.submit()
    chain.wait("a checkpoint at the access point", lambda: list((pool.directory / "spool").rglob("000000100.e*.tar")))
    chain.tool("condor_vacate_job", "-fast", job_id(chain))
    assert chain.wait_for_end() == "0", chain.said()
    handover = json.loads((workdir / "segment-0.json").read_text())
    assert (handover["state"], handover["step"]) == ("complete", 400)
    assert handover["restored"]["step"] >= 100
    commits = sorted(path.name for path in (workdir / "segue-store" / "checkpoints").glob("0*.tar"))
    assert commits[-1].startswith("000000400.")
    # Each execution in the sandbox had the key, and HTCondor stored it nowhere
    said = (workdir / "segment-0.out").read_text()
    told = [line for line in said.splitlines() if '"WANDB_RUN_ID"' in line]
    assert "a key file is here" not in said
    assert len(told) >= 2 and all('"WANDB_API_KEY"' in line for line in told)
    assert files_with(pool.directory, KEY.encode(), key) == []
    assert files_with(workdir, KEY.encode(), key) == []
