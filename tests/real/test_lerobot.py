"""LeRobot's own trainer in a chain of segments with an eviction and a kill.

LEROBOT_PYTHON=<python of an environment with lerobot 0.3.3> make test-lerobot
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dagman.pool import EmbeddedPool
from tests.real.chain import HERE, RealChain, check_resumes, given, run

pytestmark = pytest.mark.pool
STEPS = 200  # at 2 s a step a class of 180 s holds 90 at the most: two segments and an evicted attempt cannot be the whole run
RUN = """
[trainer]
recipe = "lerobot"
python = "{interpreter}"
args = [
    "--policy.type=act", "--policy.device=cpu", "--policy.pretrained_backbone_weights=null", "--policy.dim_model=32",
    "--policy.dim_feedforward=64", "--policy.n_heads=2", "--policy.chunk_size=8", "--policy.n_action_steps=8",
    "--batch_size=4", "--num_workers=0", "--log_freq=1",
]

[trainer.env]
HF_HUB_OFFLINE = "1"
OMP_NUM_THREADS = "2"
REAL_DIARY = "{directory}/diary"
REAL_STEP_S = "2.0"

[trainer.options]
program = "{program}"

[data]
dataset = "lab"
"""


@pytest.fixture(scope="module")
def interpreter() -> Path:
    return given(
        "LEROBOT_PYTHON", "the Python of an environment with lerobot 0.3.3; tests/real/setup_lerobot.py makes one"
    )


def test_chain_resumes_bit_by_bit(interpreter: Path, pool: EmbeddedPool, workdir: Path) -> None:
    run([interpreter, HERE / "lerobot_data.py", workdir / "lab"])
    program = workdir / "lerobot-train"
    program.write_text(f'#!/bin/sh\nexec {interpreter} {HERE / "lerobot_launcher.py"} "$@"\n')
    program.chmod(0o755)
    text = RUN.format(interpreter=interpreter, directory=workdir, program=program)
    chain = RealChain(pool, workdir, "act", STEPS, text)

    chain.submit()
    chain.segment_publishes(1)
    chain.vacate()
    chain.next_attempt_publishes()
    chain.segment_publishes(2)
    chain.kill_agent()
    assert chain.wait_for_end() == "0", chain.said()

    starts, handovers = chain.starts(), chain.handovers()
    assert len(handovers) >= 3 and handovers[-1]["state"] == "complete"
    assert check_resumes(starts, ("params", "optimizer")) == len(starts) - 1 >= 4
    assert len({told.batches[0] for told in starts}) == len(starts)
    assert starts[-1].saved[-1]["label"] == STEPS
    pulled = json.loads(chain.segue("pull", "run.toml", "--json"))
    assert (Path(pulled["directory"]) / "pretrained_model/model.safetensors").is_file()
    figures = {"recipe": "lerobot", "segments": len(handovers), "attempts": chain.epoch(), "starts": len(starts)}
    print(json.dumps(figures))
