"""OpenPI's own trainers in a chain of segments with an eviction and a kill; its own server takes the pulled result.

OPENPI_DIR=<checkout of commit 15a9616> OPENPI_PYTHON=<python of an environment with its pins> make test-openpi
"""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

from dagman.pool import EmbeddedPool
from tests.real.chain import HERE, RealChain, check_resumes, given, run

pytestmark = pytest.mark.pool
STEPS = 200  # at 2 s a step a class of 180 s holds 90 at the most: two segments and an evicted attempt cannot be the whole run
STEP_S = 2.0
# Compiling takes 20 s instead of two minutes, and the programs need not be fast.
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
OBSERVATION = {
    "observation/state": {"shape": [8], "dtype": "float32"},
    "observation/image": {"shape": [64, 64, 3], "dtype": "uint8"},
    "observation/wrist_image": {"shape": [64, 64, 3], "dtype": "uint8"},
    "prompt": "pick up the cup",
}
RUN = """code = "{checkout}"

[trainer]
recipe = "{recipe}"
python = "{python}"
args = ["--num-workers=0", "--log-interval=1"]

[trainer.env]
JAX_PLATFORMS = "cpu"
XLA_FLAGS = "{quick}"
HF_HUB_OFFLINE = "1"
OMP_NUM_THREADS = "2"
REAL_DIARY = "{directory}/diary"
REAL_STEP_S = "{step_s}"

[trainer.options]
config = "lab"
norm_stats = true

[wandb]
project = "lab"
id = "proof-1"
name = "cup-1"
tags = ["proof-tag"]
mode = "offline"

[data]
dataset = "lerobot/local/lab"
assets = [{{ source = "paligemma_tokenizer.model", target = ".cache/openpi/big_vision", name = "tokenizer" }}]
"""


@pytest.fixture(scope="module")
def checkout() -> Path:
    found = given("OPENPI_DIR", "a checkout of OpenPI, commit 15a9616")
    if not (found / "scripts/train.py").is_file():
        pytest.skip(f"OPENPI_DIR={found}: scripts/train.py is not there: it is no checkout of OpenPI")
    return found


@pytest.fixture(scope="module")
def interpreter(checkout: Path) -> Path:
    return given(
        "OPENPI_PYTHON", "the Python of an environment with OpenPI's pins; tests/real/setup_openpi.py makes one"
    )


def small(directory: Path, interpreter: Path) -> Path:
    """A Python that runs OpenPI's programs with a small model."""
    path = directory / "python"
    launcher = HERE / "openpi_launcher.py"
    path.write_text(
        f'#!/bin/sh\ncase "$1" in\n*scripts/*.py) exec {interpreter} {launcher} "$@" ;;\n*) exec {interpreter} "$@" ;;\nesac\n'
    )
    path.chmod(0o755)
    return path


def chain_of(recipe: str, pool: EmbeddedPool, directory: Path, checkout: Path, interpreter: Path) -> RealChain:
    """Dataset and tokenizer made, run.toml written."""
    tokenizer = directory / "paligemma_tokenizer.model"
    run(
        [interpreter, HERE / "openpi_data.py", tokenizer],
        env={**os.environ, "HF_LEROBOT_HOME": str(directory / "lerobot"), "HF_HUB_OFFLINE": "1"},
    )
    python = small(directory, interpreter)
    text = RUN.format(checkout=checkout, recipe=recipe, python=python, directory=directory, step_s=STEP_S, quick=QUICK)
    return RealChain(pool, directory, "arm", STEPS, text)


def disturbed(chain: RealChain) -> None:
    """Three segments or more, one eviction, one SIGKILL."""
    chain.submit()
    chain.segment_publishes(1)
    chain.vacate()
    chain.next_attempt_publishes()
    chain.segment_publishes(2)
    chain.kill_agent()
    assert chain.wait_for_end() == "0", chain.said()


def test_jax_chain_resumes_bit_by_bit_and_is_served(
    checkout: Path, interpreter: Path, pool: EmbeddedPool, workdir: Path
) -> None:
    chain = chain_of("openpi", pool, workdir, checkout, interpreter)

    disturbed(chain)

    starts, handovers = chain.starts(), chain.handovers()
    assert len(handovers) >= 3 and handovers[-1]["state"] == "complete"
    assert check_resumes(starts, ("params", "optimizer", "ema")) == len(starts) - 1 >= 4
    assert len({told.batches[0] for told in starts}) == len(starts), "each start has a data order of its own"
    assert starts[-1].saved[-1]["label"] == STEPS - 1
    written = chain.written_for_wandb()
    assert len(written) >= 3 and all(name.endswith("-proof-1") for name, _ in written), "one W&B run over all attempts"
    # the client writes in pieces of 32 kB and loses its piece when the trainer is killed
    kept = [data for _, data in written if data]
    assert len(kept) >= 2 and all(b"cup-1" in data and b"proof-tag" in data for data in kept), (
        "run.toml's name and tags"
    )
    stats = chain.store / "norm_stats/lab/local/lab/norm_stats.json"
    assert set(json.loads(stats.read_text())["norm_stats"]) == {"state", "actions"}

    pulled = json.loads(chain.segue("pull", "run.toml", "--json"))
    step = workdir / "checkpoints/lab/arm" / str(STEPS - 1)
    assert Path(pulled["directory"]).resolve() == step.resolve()
    assert sorted(path.name for path in step.iterdir() if path.is_dir()) == ["assets", "params"]
    assert (step / "assets/local/lab/norm_stats.json").read_bytes() == stats.read_bytes()

    served = serve(chain, checkout, workdir)
    assert served["actions"] == [4, 7]
    report("openpi", chain, served["first_ms"])


def serve(chain: RealChain, checkout: Path, directory: Path) -> dict[str, object]:
    """OpenPI's own server takes the result and answers."""
    (directory / "observation.json").write_text(json.dumps(OBSERVATION))
    home = directory / "openpi-home/big_vision"
    home.mkdir(parents=True)
    (home / "paligemma_tokenizer.model").write_bytes((directory / "paligemma_tokenizer.model").read_bytes())
    here = {
        "OPENPI_DATA_HOME": str(home.parent),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": QUICK,
        "REAL_DIARY": str(chain.diary),
    }
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = ("serve", "run.toml", "--openpi", str(checkout), "--python", str(directory / "python"), "--port", str(port))
    with pytest.MonkeyPatch.context() as patch:
        for name, value in here.items():
            patch.setenv(name, value)
        told = chain.segue(*words, "--observation", "observation.json", "--check", "--json", "--wait", "900")
    found: dict[str, object] = json.loads(told)
    return found


def test_pytorch_chain_resumes_bit_by_bit(pool: EmbeddedPool, workdir: Path, checkout: Path, interpreter: Path) -> None:
    chain = chain_of("openpi-pytorch", pool, workdir, checkout, interpreter)

    disturbed(chain)

    starts, handovers = chain.starts(), chain.handovers()
    assert len(handovers) >= 3 and handovers[-1]["state"] == "complete"
    assert check_resumes(starts, ("params", "optimizer")) == len(starts) - 1 >= 4
    assert len({told.batches[0] for told in starts}) == len(starts)
    assert chain.newest()[1] == STEPS
    pulled = json.loads(chain.segue("pull", "run.toml", "--json"))
    assert (Path(pulled["directory"]) / "model.safetensors").is_file()
    report("openpi-pytorch", chain, None)


def report(recipe: str, chain: RealChain, first_ms: object) -> None:
    """The figures, for people."""
    told = {
        "recipe": recipe,
        "segments": len(chain.handovers()),
        "attempts": chain.epoch(),
        "starts": len(chain.starts()),
        "startup_s": [round(one["pace"]["startup_s"], 1) for one in chain.handovers()],
        "first_inference_ms": first_ms,
    }
    print(json.dumps(told))
