"""`make faults`: every disturbance through the generated workflow with the reference trainer, and what must hold over many segments.

Slower than the suite allows (some twenty minutes); the suite holds the same with a plain trainer in test_faults_on_pool.py.
"""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dagman.pool import EmbeddedPool
from tests.agent.second_user import SecondUser, command_lines, files_with
from tests.agent.support import alive, wait_for
from tests.agent.workflow import SEGUE, Workflow, record, same, temporary_files, train_alone
from tests.conftest import outside_tmp

pytestmark = [pytest.mark.pool, pytest.mark.slow]

ARGS = ("--batch-size", "32", "--hidden", "32", "--seed", "3")


def toml(steps: int, args: tuple[str, ...], queue_class: str, more: str = "", save: int | None = None) -> str:
    """A run of the reference trainer."""
    interval = f"save_interval = {save}\n" if save else ""
    return (
        f'steps = {steps}\n[trainer]\nrecipe = "reference"\nargs = {json.dumps(args)}\n[data]\ndataset = "data"\n'
        f'[segments]\nclass = "{queue_class}"\n{interval}{more}'
    )


# --- one chain, all disturbances -------------------------------------------------------------------------------------


def vacate(flow: Workflow) -> None:
    flow.tool("condor_vacate_job", flow.job_id())


def vacate_fast(flow: Workflow) -> None:
    flow.tool("condor_vacate_job", "-fast", flow.job_id())


def drain(flow: Workflow) -> None:
    before = flow.epoch()
    slot = next(name for name in flow.tool("condor_status", "-af", "Name").split() if "_" not in name)
    flow.tool("condor_drain", "-graceful", "-resume-on-completion", slot)
    flow.wait("the drain", lambda: not flow.processes() or flow.epoch() > before)


def hold_and_release(flow: Workflow) -> None:
    job = flow.job_id()
    flow.tool("condor_hold", job)
    flow.wait("the hold", lambda: flow.tool("condor_q", job, "-af", "JobStatus").strip() == "5")
    flow.tool("condor_release", job)


def kill(role: str) -> Callable[[Workflow], None]:
    def disturb(flow: Workflow) -> None:
        os.kill(flow.cast()[role], signal.SIGKILL)

    disturb.__name__ = f"kill_{role}"
    return disturb


SAME_ATTEMPT = [kill("trainer"), kill("worker")]
NEW_ATTEMPT = [vacate, vacate_fast, drain, hold_and_release, kill("agent"), kill("starter"), kill("shadow")]


def test_a_workflow_survives_every_disturbance_and_equals_the_uninterrupted_run(
    pool: EmbeddedPool, workdir: Path
) -> None:
    steps = 3000
    record(workdir)
    args = (*ARGS, "--workers", "2", "--step-seconds", "0.03")
    flow = Workflow(pool, workdir, toml(steps, args, "long", save=40))
    flow.submit()
    for disturb in SAME_ATTEMPT:
        flow.running()
        step = flow.newest()[1]
        disturb(flow)
        flow.wait(f"progress after {disturb.__name__}", lambda step=step: flow.newest()[1] > step)
    for disturb in NEW_ATTEMPT:
        flow.running()
        before = flow.epoch()
        disturb(flow)
        flow.wait(f"a new attempt after {disturb.__name__}", lambda before=before: flow.epoch() > before)
        flow.running()
        # Nothing of earlier attempts; this one may be writing right now, or pruning one of their commits, which is over in a moment.
        left = [path for path in temporary_files(flow.store) if f"{flow.epoch():06d}" not in path]
        assert [path for path in left if not path.endswith(".pruned")] == [], disturb.__name__
        flow.wait(
            f"the end of the prune after {disturb.__name__}", lambda left=left: not any(map(os.path.exists, left))
        )
    assert flow.wait_for_end(600) == "0", flow.said()
    wait_for(lambda: not any(alive(pid) for pid in flow.processes()), "the end of all processes")
    assert temporary_files(workdir / "staging") == []
    assert flow.newest()[1] == steps
    assert same(train_alone(workdir, steps, *ARGS), flow.newest_path())["optimizer"]
    assert flow.epoch() >= 1 + len(NEW_ATTEMPT)


# --- many segments ---------------------------------------------------------------------------------------------------


def test_twenty_planned_ends_redo_nothing(pool: EmbeddedPool, workdir: Path) -> None:
    record(workdir)
    more = "count = 20\nreserve = 0\n"
    flow = Workflow(pool, workdir, toml(1_000_000, (*ARGS, "--step-seconds", "0.02"), "blink", more))
    flow.submit()
    # The run is not complete when its segments are used up; consolidate says so.
    assert flow.wait_for_end(1500) != "0"
    handovers = flow.handovers()
    assert [one["state"] for one in handovers] == ["time-used"] * 20, flow.said()
    assert [one["redone_steps"] for one in handovers] == [0] * 20
    reached = [one["step"] for one in handovers]
    assert [one["restored"]["step"] for one in handovers[1:]] == reached[:-1]
    assert all(after > before for before, after in zip([0, *reached], reached, strict=False))
    assert all(one["ended"] - one["began"] < 20 for one in handovers)
    assert len(list((flow.store / "epochs").glob("[0-9]*"))) >= 1 and flow.epoch() == 20


# --- a trainer that fails at the same step every time ----------------------------------------------------------------


@pytest.mark.parametrize("fault", ["crash", "hang"])
def test_a_fault_at_the_same_step_ends_the_workflow_after_three_starts(
    pool: EmbeddedPool, workdir: Path, fault: str
) -> None:
    record(workdir)
    more = "[agent]\nhang_min_s = 6.0\nhang_factor = 3.0\n"
    args = (*ARGS, "--workers", "1", f"--{fault}-at", "37")
    flow = Workflow(pool, workdir, toml(200, args, "long", more, save=10))
    flow.submit()
    assert flow.wait_for_end() != "0"
    (handover,) = (one for one in flow.handovers() if one["state"] != "pending")
    assert (handover["state"], handover["exit_code"], handover["starts"], handover["epoch"]) == ("failed", 78, 3, 1)
    assert "step 37" in handover["reason"]
    assert handover["failure"]["class"] == ("hang" if fault == "hang" else "unknown")
    lines = "\n".join(handover["last_lines"])
    assert ("faults.py" in lines and "in hang" in lines) if fault == "hang" else "told to crash in step 37" in lines
    told = flow.status()
    assert told["state"] == "failed" and "step 37" in told["reason"]
    assert told["attempts"] == 1


# --- staging away for a minute ---------------------------------------------------------------------------------------


def test_staging_may_be_away_for_a_minute(pool: EmbeddedPool, workdir: Path) -> None:
    steps = 3600
    record(workdir)
    flow = Workflow(pool, workdir, toml(steps, (*ARGS, "--step-seconds", "0.03", "--workers", "1"), "long", save=40))
    flow.submit()
    flow.running()
    away = workdir / "staging-away"
    trainer = flow.cast()["trainer"]
    (workdir / "staging").rename(away)
    before = flow.epoch, int(flow.newest()[1])
    agent_log = flow.directory / "logs" / "segment-000.err"
    assert before and agent_log
    wait_for_s(60)
    assert alive(trainer) and not (workdir / "staging").exists()
    away.rename(workdir / "staging")
    step = flow.newest()[1]
    flow.wait("the next publish", lambda: flow.newest()[1] > step)
    assert flow.newest()[1] > step + 1000, "training went on meanwhile"
    assert flow.wait_for_end() == "0", flow.said()
    (handover,) = (one for one in flow.handovers() if one["state"] == "complete")
    assert len(handover["warnings"]) == 1 and "training goes on" in handover["warnings"][0]
    assert (handover["epoch"], handover["starts"]) == (1, 1)


def wait_for_s(seconds: float) -> None:
    """The minute that is asked for: it is the disturbance itself, not a wait for something."""
    signal.sigtimedwait([signal.SIGUSR2], seconds)


# --- secrets, W&B ----------------------------------------------------------------------------------------------------

KEY = "not-a-key-" + "s" * 30


@pytest.fixture
def open_pool(workdir: Path) -> Iterator[EmbeddedPool]:
    """A pool whose queue every user may read, as on an access point."""
    import shutil
    import tempfile

    directory = Path(tempfile.mkdtemp(prefix="q-", dir=outside_tmp()))
    with EmbeddedPool(directory, config={"ALLOW_READ": "*"}) as running:
        yield running
    shutil.rmtree(directory, ignore_errors=True)


def test_another_user_sees_no_key_and_all_segments_are_one_wandb_run(open_pool: EmbeddedPool, workdir: Path) -> None:
    pytest.importorskip("wandb")
    # Given a key as `segue login` leaves it, and a trainer that logs with the real client to a server that is not there
    config = workdir / "config"
    (config / "segue").mkdir(parents=True)
    key = config / "segue" / "wandb.key"
    key.touch(mode=0o600)
    key.write_text(KEY + "\n")
    trainer = Path(__file__).with_name("plain_trainer.py")
    args = [str(trainer), "step_s=0.02", "wandb=1", "workers=1"]
    text = (
        f'steps = 1000000\n[trainer]\nrecipe = "command"\nargs = {json.dumps(args)}\n'
        'env = { WANDB_BASE_URL = "http://127.0.0.1:9", WANDB_SILENT = "true" }\n'
        "options = { stops_on_request = true }\n"
        '[segments]\nclass = "short"\ncount = 3\nreserve = 0\nsave_interval = 50\n'
        '[wandb]\nproject = "arm"\ntags = ["a"]\n'
    )
    flow = Workflow(open_pool, workdir, text)
    flow.tool("env", f"XDG_CONFIG_HOME={config}", *SEGUE, "dag", str(flow.toml))
    flow.tool("condor_submit_dag", str(flow.directory / "run.dag"))
    # When another user looks while it trains, and two attempts are evicted
    other = SecondUser(open_pool, workdir / "other")
    for number in range(2):
        flow.running()
        trainer_pid = flow.cast()["trainer"]
        assert KEY.encode() in Path(f"/proc/{trainer_pid}/environ").read_bytes()
        assert KEY.encode() not in command_lines()
        seen = other.sees("condor_q", "-allusers", "-l")
        assert "segment_000" in seen and KEY not in seen
        assert KEY not in other.sees("condor_status", "-l")
        before = flow.epoch()
        flow.tool("condor_vacate_job", flow.job_id())
        flow.wait(f"attempt {number + 2}", lambda before=before: flow.epoch() > before)
    flow.wait_for_end(400)
    # Then the key was nowhere: ads, history, logs, workflow, staging, spool
    history = other.sees("condor_history", "-name", "localhost", "-l") if other.may_read_history() else ""
    history += flow.tool("condor_history", "-l")
    assert "segment_000" in history and KEY not in history
    assert files_with(workdir, KEY.encode(), key) == []
    assert files_with(open_pool.directory, KEY.encode(), key) == []
    # And all segments and attempts are one run of W&B
    assert [one["state"] for one in flow.handovers()] == ["time-used"] * 3, flow.said()
    names = flow.tool("python3", "-c", _NAMES, str(flow.store / "wandb")).split()
    assert len(names) == 5 and len(set(names)) == 1, names


_NAMES = """
import pathlib, sys, tarfile
for path in sorted(pathlib.Path(sys.argv[1]).glob("*.tar")):
    print(*{pathlib.Path(name).name for name in tarfile.open(path).getnames() if name.endswith(".wandb")})
"""


# --- a machine that failed -------------------------------------------------------------------------------------------

TWO_MACHINES = {
    "DAEMON_LIST": "MASTER COLLECTOR NEGOTIATOR SCHEDD STARTD_A STARTD_B",
    **{
        f"{key}": value
        for name in ("A", "B")
        for key, value in {
            f"STARTD_{name}": "$(STARTD)",
            f"STARTD_{name}_ARGS": f"-local-name {name}",
            f"{name}.STARTD_NAME": f"node-{name.lower()}",
            f"{name}.STARTD_LOG": f"$(LOG)/StartLog.{name}",
            f"{name}.NETWORK_HOSTNAME": f"node-{name.lower()}",
        }.items()
    },
}


@pytest.mark.parametrize("way", ["gpu-lost", "agent-killed"])
def test_the_retry_runs_on_another_machine(workdir: Path, way: str) -> None:
    import shutil
    import tempfile

    # Given two machines and a site that avoids the one that failed
    directory = Path(tempfile.mkdtemp(prefix="q-", dir=outside_tmp()))
    site = (Path(__file__).parents[2] / "dagman" / "sites" / "local.toml").read_text(encoding="utf-8")
    (workdir / "site.toml").write_text(site.replace("avoid_failed_machine = false", "avoid_failed_machine = true"))
    trainer = Path(__file__).with_name("plain_trainer.py")
    fault = ["xid_at=60"] if way == "gpu-lost" else []
    args = [str(trainer), "step_s=0.05", *fault, "workers=1"]
    text = (
        f'steps = 120\n[trainer]\nrecipe = "command"\nargs = {json.dumps(args)}\n'
        "options = { stops_on_request = true }\n"
        '[segments]\nclass = "long"\nsave_interval = 20\n'
        '[resources]\nrequirements = "TARGET.Memory > 100"\n'
    )
    with EmbeddedPool(directory, config=TWO_MACHINES) as pool:
        flow = Workflow(pool, workdir, text, site="site.toml")
        flow.submit()
        # When an attempt fails there
        flow.running()
        if way == "agent-killed":
            os.kill(flow.cast()["agent"], signal.SIGKILL)
        flow.wait("the retry", lambda: flow.epoch() > 1)
        avoided = (flow.directory / "avoid" / "segment-000.sub").read_text(encoding="utf-8")
        ad = flow.tool("condor_q", flow.job_id(), "-af:r", "Requirements")
        wait_for_end_or_fault(flow)
        attempts = flow.status()["segments"][0]["attempts"]
    shutil.rmtree(directory, ignore_errors=True)
    # Then the next one runs on the other machine, beside the user's own requirements, and the report names both
    machines = [attempt["machine"] for attempt in attempts]
    assert len(machines) >= 2 and machines[0] != machines[1], machines
    first = json.loads((flow.store / "epochs" / "000001.json").read_text())["machine"]
    assert f'TARGET.Machine != "{first}"' in avoided
    assert f'TARGET.Machine != "{first}"' in ad and "TARGET.Memory > 100" in ad


def wait_for_end_or_fault(flow: Workflow) -> None:
    """The run completes, or its trainer fails on the second machine too; either ends the node."""
    flow.wait_for_end(240)


# --- compiled programs -----------------------------------------------------------------------------------------------


def test_a_resumed_segment_does_not_compile_again(pool: EmbeddedPool, workdir: Path) -> None:
    record(workdir)
    env = 'env = { JAX_DEBUG_LOG_MODULES = "jax._src.compiler" }\n'
    text = toml(2000, (*ARGS, "--step-seconds", "0.03"), "long", save=40).replace("[data]", f"{env}[data]")
    flow = Workflow(pool, workdir, text)
    flow.submit()
    flow.running()
    flow.tool("condor_vacate_job", flow.job_id())
    flow.wait("a new attempt", lambda: flow.epoch() > 1)
    flow.running()
    following = ["timeout", "10", *SEGUE, "logs", str(flow.directory), "-f"]
    seen = pool.run(following, capture_output=True, text=True)
    assert "step " in seen.stdout, seen.stderr  # the running attempt, as it goes
    flow.tool("condor_vacate_job", flow.job_id())
    flow.wait("a third attempt", lambda: flow.epoch() > 2)
    logs = [flow.tool(*SEGUE, "logs", str(flow.directory), "--attempt", str(number)) for number in (1, 2)]
    flow.tool("condor_rm", "-all")
    missed = ["PERSISTENT COMPILATION CACHE MISS for 'jit_update'" in log for log in logs]
    hit = ["Persistent compilation cache hit for 'jit_update'" in log for log in logs]
    assert (missed, hit) == ([True, False], [False, True]), logs[1][-3000:]
