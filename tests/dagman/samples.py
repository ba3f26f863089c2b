"""Workflows for tests: the golden runs for a place of their own, and small run files written out as TOML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from agent.config import InputArchive
from dagman.plan import make_plan
from dagman.site import load_site
from dagman.spec import load_spec
from dagman.submit import Places
from dagman.workflow import Workflow, generate, job_config

GOLDEN = Path(__file__).with_name("golden")
RUNS = ("chtc", "local")
DIGEST = "0123456789abcdef" * 4


def golden_workflow(kind: str, directory: Path, staging: Path, key: Path = Path("/home/bbadger/wandb.key")) -> Workflow:
    """The workflow of golden/<kind>/run.toml for any place: nothing on this machine is asked."""
    run_toml = GOLDEN / kind / "run.toml"
    spec = load_spec(run_toml)
    site = load_site(spec.site, run_toml.parent)
    plan = make_plan(spec, site)
    if kind == "local":
        places = Places(directory, "/opt/segue/bin:/usr/local/bin:/usr/bin:/bin")
        return generate(spec, site, plan, directory, job_config(spec, site, plan, staging), "", places)
    archive = staging / "segue" / "_inputs" / "dataset-0123456789abcdef.tar"
    data = InputArchive("dataset", archive.name, DIGEST, 12_000_000_000, ".cache/huggingface/lerobot/local/fold", "",
                        site.transfer_url(archive, 12_000_000_000))  # fmt: skip
    code = InputArchive("code", "code-0123456789abcdef.tar", DIGEST, 3_000_000, "code", "", "plain", "v1-0-g0123456")
    job = job_config(spec, site, plan, staging, [data], code, (), key.name)
    places = Places(directory, "", key, (data.travels,), code.archive)
    return generate(spec, site, plan, directory, job, "", places)


def toml(data: dict[str, Any]) -> str:
    """TOML of tables of plain values; every string is escaped, whatever is in it."""
    return "\n".join([f"{_word(key)} = {_value(value)}" for key, value in data.items()]) + "\n"


def _word(text: str) -> str:
    # JSON's escapes are TOML's, but for DEL, which TOML wants escaped too.
    return json.dumps(text).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{_word(key)} = {_value(entry)}" for key, entry in value.items()) + " }"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(entry) for entry in value) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f") if isinstance(value, str) else str(value)
