"""Without a mounted staging: the generated workflow in the mode with exit 85, through restarts, an eviction and a second segment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dagman.pool import EmbeddedPool
from tests.agent.workflow import SEGUE, Workflow, record, same, train_alone

ARGS = ("--batch-size", "32", "--hidden", "32", "--seed", "3")
STEPS = 900
"""More than an execution of 30 s makes, on a fast machine too: 840 after the eviction, with a restart at every 60th."""
TOML = f"""steps = {STEPS}
[trainer]
recipe = "reference"
args = {json.dumps([*ARGS, "--step-seconds", "0.03", "--workers", "1"])}
[data]
dataset = "data"
[segments]
class = "short"
save_interval = 60
reserve = 12
[agent]
checkpoint_exit = true
"""


@pytest.mark.pool
@pytest.mark.slow
def test_htcondor_moves_the_store_from_segment_to_segment(pool: EmbeddedPool, workdir: Path) -> None:
    # Given a run whose jobs see no staging
    record(workdir)
    flow = Workflow(pool, workdir, TOML)
    said = flow.tool(*SEGUE, "plan", str(flow.toml))
    assert "checkpoint" in said and "restart" in said
    flow.submit()
    # When the first segment is evicted after HTCondor has stored a checkpoint
    spool = pool.directory / "spool"
    flow.wait("a checkpoint at the access point", lambda: list(spool.rglob("000000060.e*.tar")))
    flow.tool("condor_vacate_job", "-fast", flow.job_id())
    # Then the run ends as one that was left alone, in the workflow directory
    assert flow.wait_for_end() == "0", flow.said()
    flow.store = flow.directory / "segue-store"
    assert flow.newest()[1] == STEPS
    same(train_alone(workdir, STEPS, *ARGS), flow.newest_path())
    (final,) = (flow.store / "final").glob("*.tar")
    assert same(flow.newest_path(), flow.newest_path())["optimizer"]
    assert final.name == f"run-{STEPS:09d}.tar"
    ended = [one for one in flow.handovers() if one["state"] in ("time-used", "complete")]
    assert len(ended) >= 2 and ended[-1]["state"] == "complete"
    assert all(one["redone_steps"] == 0 for one in ended[1:])
    # Commits that were pruned in the sandbox do not pile up at the access point, and the store can be read there
    assert len(list((flow.store / "checkpoints").glob("0*.tar"))) <= 4
    listed = json.loads(flow.tool(*SEGUE, "commits", str(flow.directory), "--json"))
    assert listed
    assert flow.status()["step"] == STEPS
