"""Segments in reserve cost no match: a run that is complete early ends in one pass, and what is skipped was never submitted.

The suite takes 16 segments; `make skips` takes 200. DAGMan handles one skipped segment in each of its scan intervals.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from dagman.pool import EmbeddedPool
from tests.pool.generated import Generated

SEGMENTS = int(os.environ.get("SEGUE_SKIPS", "16"))

pytestmark = [pytest.mark.pool, pytest.mark.slow]


def test_segments_after_the_end_are_skipped_without_a_job(pool: EmbeddedPool, workdir: Path) -> None:
    # Given a chain with far more segments than the run needs,
    needed, steps = (10, 1250) if SEGMENTS >= 100 else (2, 160)
    run = Generated(
        pool,
        workdir,
        steps=steps,
        limit_s=8.0,
        queue_class="tiny",
        segments=f"count = {needed}\nreserve = {SEGMENTS - needed}",
    )
    # when it is submitted once,
    run.segue("submit", "run.toml")
    status = run.wait_for_end(60 + 20 * needed + 3 * SEGMENTS)
    # then it is complete,
    assert (status["state"], status["step"]) == ("complete", steps), run.said()
    states = [segment["state"] for segment in status["segments"]]
    assert len(states) == SEGMENTS and set(states) == {"finished", "skipped"}
    ran = states.count("finished")
    assert states == ["finished"] * ran + ["skipped"] * (SEGMENTS - ran)
    assert states.count("skipped") >= SEGMENTS - 2 * needed
    # and HTCondor was asked for the segments that ran, for stage and consolidate, and for nothing else.
    log = (run.workflow / "events.log").read_text()
    submitted = re.findall(r"^000 \(", log, re.MULTILINE)
    assert len(submitted) == ran + 2
    named = set(re.findall(r'(?:DAG Node: |DAGNodeName = ")(\w+)', log))
    assert named == {"stage", "consolidate", *(f"segment_{number:03d}" for number in range(ran))}
    # One pass: DAGMan was started once and needed no rescue file.
    assert not list(run.workflow.glob("*.rescue*"))
    assert len(re.findall(r"^000 \(", (run.workflow / "run.dag.dagman.log").read_text(), re.MULTILINE)) == 1
    if SEGMENTS >= 100:
        print(f"{SEGMENTS} segments, {ran} ran, {SEGMENTS - ran} skipped, {status['ended'] - status['began']:.0f} s")
