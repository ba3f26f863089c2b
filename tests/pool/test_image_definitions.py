"""The image's definitions keep the rules that jobs need; there may be no Docker here, so they are read, not built."""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from cli.main import main

IMAGES = Path(__file__).resolve().parents[2] / "images"
OPENPI = IMAGES / "openpi"
# What the job sets for itself below its scratch directory; an image that names them names a place that it cannot write to.
JOB_VARIABLES = {
    "HOME",
    "XDG_CACHE_HOME",
    "HF_HOME",
    "HF_LEROBOT_HOME",
    "OPENPI_DATA_HOME",
    "WANDB_DIR",
    "UV_CACHE_DIR",
    "TMPDIR",
}


@dataclass(frozen=True)
class Instruction:
    """One Dockerfile instruction with continued lines joined."""

    name: str
    text: str


def dockerfile() -> list[Instruction]:
    lines = [
        line for line in (OPENPI / "Dockerfile").read_text().splitlines() if line.strip() and not line.startswith("#")
    ]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    pairs = [line.split(None, 1) for line in joined.splitlines()]
    return [Instruction(name.upper(), text) for name, text in pairs]


def texts(name: str) -> list[str]:
    return [instruction.text for instruction in dockerfile() if instruction.name == name]


def variables() -> dict[str, str]:
    found = {}
    for text in texts("ENV"):
        found.update(dict(pair.split("=", 1) for pair in shlex.split(text)))
    return found


def test_base_is_pinned_by_digest_and_is_for_the_pools_architecture() -> None:
    (base,) = texts("FROM")
    assert re.fullmatch(r"--platform=linux/amd64 \S+:\S+@sha256:[0-9a-f]{64}", base)
    definition = (OPENPI / "openpi.def").read_text()
    assert f"From: {base.split()[1]}\n" in definition, "both definitions start from the same base"


def test_image_ends_as_an_ordinary_user_and_checks_itself_as_that_user() -> None:
    order = [instruction.name for instruction in dockerfile()]
    assert texts("USER") == ["1000:1000"]
    last_run = max(index for index, name in enumerate(order) if name == "RUN")
    assert order.index("USER") < last_run
    assert texts("RUN")[-1].endswith("install.sh check")


def test_nothing_that_a_job_reads_lies_in_roots_home() -> None:
    values = variables()
    assert values["UV_PYTHON_INSTALL_DIR"] == "/opt/python"
    assert values["UV_PROJECT_ENVIRONMENT"] == "/.venv"
    for path in (OPENPI / "Dockerfile", OPENPI / "install.sh", OPENPI / "openpi.def"):
        code = [line for line in path.read_text().splitlines() if not line.lstrip().startswith("#")]
        assert not [line for line in code if "/root" in line or "~/" in line]
    assert "chmod -R a+rX /app /.venv /opt/python" in (OPENPI / "install.sh").read_text()


def test_home_and_caches_are_left_to_the_job() -> None:
    assert JOB_VARIABLES.isdisjoint(variables())
    environment = (OPENPI / "openpi.def").read_text().split("%environment")[1].split("%test")[0]
    assert JOB_VARIABLES.isdisjoint(re.findall(r"export (\w+)=", environment))


def test_both_definitions_give_jobs_the_same_environment() -> None:
    environment = (OPENPI / "openpi.def").read_text().split("%environment")[1].split("%test")[0]
    given = dict(re.findall(r"export (\w+)=(\S+)", environment))
    assert given == {name: value for name, value in variables().items() if not name.startswith("UV_")}


def test_what_users_found_missing_is_installed() -> None:
    script = (OPENPI / "install.sh").read_text()
    for package in ("ca-certificates", "libgl1", "libegl1", "git-lfs"):
        assert re.search(rf"\b{package}\b", script.split("apt-get install")[1].split("rm -rf")[0]), package
    assert re.search(r"psutil==\d", script)
    assert re.search(r"uv==\d", script)
    assert variables()["SSL_CERT_FILE"] == "/etc/ssl/certs/ca-certificates.crt"


def test_apt_leaves_no_lists_and_installs_no_recommendations() -> None:
    script = (OPENPI / "install.sh").read_text()
    assert script.count("apt-get install") == script.count("--no-install-recommends") == 1
    assert "rm -rf /var/lib/apt/lists/*" in script


def test_no_secret_and_no_download_from_an_unnamed_place_is_in_a_layer() -> None:
    for instruction in dockerfile():
        assert instruction.name != "ADD"
        if instruction.name in ("ARG", "ENV"):
            assert not re.search(r"KEY|TOKEN|SECRET|PASSWORD", instruction.text, re.IGNORECASE)
    ignored = (OPENPI / "Dockerfile.dockerignore").read_text().split()
    assert {".git", "**/.venv", "checkpoints", "wandb", ".env", "**/.netrc"} <= set(ignored)


def test_dependencies_are_a_layer_of_their_own_before_the_code() -> None:
    steps = [instruction.text for instruction in dockerfile() if instruction.name in ("COPY", "RUN")]
    lock = next(index for index, text in enumerate(steps) if "uv.lock" in text)
    install = next(index for index, text in enumerate(steps) if text.endswith("install.sh dependencies"))
    code = next(index for index, text in enumerate(steps) if text == ". /app/")
    assert lock < install < code


def test_install_script_is_valid_shell_and_refuses_unknown_steps() -> None:
    script = str(OPENPI / "install.sh")
    assert subprocess.run(["bash", "-n", script], check=False).returncode == 0
    unknown = subprocess.run(["bash", script, "nothing"], capture_output=True, text=True, check=False)
    assert unknown.returncode == 2
    assert unknown.stderr.startswith("usage: install.sh")


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The files of an OpenPI checkout that a build looks for."""
    place = tmp_path / "openpi"
    for name in ("src/openpi", "packages/openpi-client"):
        (place / name).mkdir(parents=True)
    (place / "pyproject.toml").write_text("[project]\n")
    (place / "uv.lock").write_text("version = 1\n")
    return place


def _printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["image", *arguments]) == 0
    return capsys.readouterr().out.strip()


def test_tag_changes_with_dependencies_and_not_with_code(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    build = ("build", "--openpi", str(checkout), "--repository", "bbadger/openpi", "--print")
    first = _printed(capsys, *build)
    (checkout / "src/openpi/train.py").write_text("changed = True\n")
    assert _printed(capsys, *build) == first
    (checkout / "uv.lock").write_text("version = 2\n")
    assert _printed(capsys, *build) != first
    assert re.search(r"--tag=bbadger/openpi:[0-9a-f]{12} ", first)
    assert "--platform=linux/amd64" in first


def test_apptainer_command_names_checkout_and_definition(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    printed = _printed(capsys, "sif", "--openpi", str(checkout), "--to", str(checkout / "openpi.sif"), "--print")
    assert printed.startswith("apptainer build --build-arg=OPENPI=")
    assert printed.endswith("images/openpi/openpi.def")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["build", "--openpi", "/nonexistent"], "has no uv.lock: give the top directory of an OpenPI checkout"),
        (["push", "bbadger/openpi"], "has no tag"),
        (["sif", "--definition", "/nonexistent.def", "--to", "x.sif"], "there is no definition file /nonexistent.def"),
    ],
)
def test_bad_input_is_one_sentence(arguments: list[str], sentence: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["image", *arguments]) == 2
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1


def test_without_docker_the_command_to_run_elsewhere_is_in_the_error(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(checkout))
    assert main(["image", "build", "--openpi", str(checkout)]) == 1
    assert "docker is not on this machine; where it is, run: docker build" in capsys.readouterr().err
