"""The embedded pool's configuration: one machine, loopback only, quick to match, small logs.

HTCondor's defaults suit thousands of machines (a job may wait a minute for the next negotiation); each line that differs says
why. Callers add or replace parameters by a mapping; the twin of a GPU pool does.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path

from dagman.pool.installation import Installation

DIRECTORIES = (
    "execute",
    "lock",
    "log",
    "run",
    "spool",
    "passwords.d",
    "tokens.d",
    "system_tokens.d",
    "credentials",
    "local",
)
# A Unix socket's path has at most 107 bytes; HTCondor adds names like `shared_port_12345_abcd_1`.
_LONGEST_SOCKET_DIRECTORY = 70


def socket_directory(directory: Path) -> Path:
    """Where the daemons' sockets lie: in the pool, or, when its path is too long for a socket, in a short private place."""
    inside = directory / "sock"
    if len(os.fsencode(inside)) <= _LONGEST_SOCKET_DIRECTORY:
        return inside
    name = f"segue-{os.geteuid()}-{sha256(os.fsencode(directory)).hexdigest()[:12]}"
    return Path(tempfile.gettempdir()) / name


def configuration(directory: Path, installation: Installation, more: Mapping[str, str]) -> str:
    """Text of condor_config."""
    lines = ["# The embedded pool of segue: written at each start, by hand nothing lasts here."]
    lines += [f"{key} = {value}" for key, value in installation.settings]
    lines += ["use ROLE: Personal"]
    if Path("/dev/nvidia0").exists():
        lines += ["use FEATURE: GPUs"]
    for title, section in (
        ("places", _places(directory)),
        ("the loopback interface only", _NETWORK),
        ("who may do what: this user, and nobody else", _SECURITY),
        ("a quick pool", {**_QUICK, "FILETRANSFER_PLUGINS": _plugins(installation)}),
        ("the machine", _MACHINE),
        ("the caller's own", dict(more)),
    ):
        lines += ["", f"# {title}", *(f"{key} = {value}" for key, value in section.items())]
    return "\n".join([*lines, ""])


def _plugins(installation: Installation) -> str:
    # Each starter asks each plugin what it can do: the Python ones cost half a second, and lack their bindings here.
    return ", ".join(
        str(path) for name in ("curl_plugin", "data_plugin") if (path := installation.libexec / name).exists()
    )


def _places(directory: Path) -> dict[str, str]:
    return {
        "LOCAL_DIR": str(directory),
        "LOCAL_CONFIG_FILE": "",
        "LOCAL_CONFIG_DIR": "",
        "REQUIRE_LOCAL_CONFIG_FILE": "False",
        "EXECUTE": f"{directory}/execute",
        "LOCK": f"{directory}/lock",
        "LOG": f"{directory}/log",
        "RUN": f"{directory}/run",
        "SPOOL": f"{directory}/spool",
        "DAEMON_SOCKET_DIR": str(socket_directory(directory)),
        "MASTER_ADDRESS_FILE": "$(LOG)/.master_address",
        "COLLECTOR_ADDRESS_FILE": "$(LOG)/.collector_address",
        "SCHEDD_ADDRESS_FILE": "$(LOG)/.schedd_address",
        "SEC_PASSWORD_DIRECTORY": f"{directory}/passwords.d",
        "SEC_TOKEN_DIRECTORY": f"{directory}/tokens.d",
        "SEC_TOKEN_SYSTEM_DIRECTORY": f"{directory}/system_tokens.d",
        "SEC_CREDENTIAL_DIRECTORY_OAUTH": f"{directory}/credentials",
        "CREDD_OAUTH_MODE": "True",
        "MAIL": "/bin/true",
        "SENDMAIL": "/bin/true",
    }


_NETWORK = {
    "NETWORK_INTERFACE": "127.0.0.1",
    "BIND_ALL_INTERFACES": "False",
    "ENABLE_IPV4": "True",
    "ENABLE_IPV6": "False",
    # A machine whose own name does not resolve would not start otherwise.
    "NETWORK_HOSTNAME": "localhost",
    "NO_DNS": "False",
    "CONDOR_HOST": "127.0.0.1",
    # Any free port: several pools may run side by side; the address files tell the tools.
    "COLLECTOR_HOST": "127.0.0.1:0",
    "UID_DOMAIN": "localhost",
    "FILESYSTEM_DOMAIN": "localhost",
    "TRUST_UID_DOMAIN": "True",
}
_SELF = "$(USERNAME)@$(UID_DOMAIN) $(USERNAME)@127.0.0.1 $(USERNAME)@localhost"
_SECURITY = {
    "SEC_DEFAULT_AUTHENTICATION": "REQUIRED",
    "SEC_DEFAULT_AUTHENTICATION_METHODS": "FS, IDTOKENS",
    **{
        f"ALLOW_{level}": _SELF
        for level in (
            "READ",
            "WRITE",
            "DAEMON",
            "ADMINISTRATOR",
            "ADVERTISE",
            "NEGOTIATOR",
            "ADVERTISE_MASTER",
            "ADVERTISE_SCHEDD",
            "ADVERTISE_STARTD",
        )
    },
}
_QUICK = {
    "NEGOTIATOR_INTERVAL": "1",
    "NEGOTIATOR_MIN_INTERVAL": "1",
    "NEGOTIATOR_CYCLE_DELAY": "0",
    "SCHEDD_INTERVAL": "1",
    "SCHEDD_MIN_INTERVAL": "0",
    "UPDATE_INTERVAL": "2",
    "POLLING_INTERVAL": "1",
    "STARTER_UPDATE_INTERVAL": "2",
    "STARTER_INITIAL_UPDATE_INTERVAL": "1",
    "SHADOW_QUEUE_UPDATE_INTERVAL": "2",
    "JOB_START_DELAY": "0",
    "JOB_START_COUNT": "100",
    "MASTER_BACKOFF_CONSTANT": "1",
    "DAGMAN_USER_LOG_SCAN_INTERVAL": "1",
    "DAGMAN_SUBMIT_DELAY": "0",
    # Benchmarks at start-up would take the machine for half a minute, and nobody asks for their result.
    "STARTD_CRON_BENCHMARKS_JOBLIST": "",
    "BENCHMARKS_JOBLIST": "",
    "RUNBENCHMARKS": "False",
    "SHUTDOWN_GRACEFUL_TIMEOUT": "60",
    "SHUTDOWN_FAST_TIMEOUT": "10",
    "MAX_DEFAULT_LOG": "2 Mb",
    "MAX_HISTORY_LOG": "5000000",
    "PREEN": "",
}
_MACHINE = {
    # Advertised, not measured: short segments share the cores, and tests must not queue for them.
    "NUM_CPUS": "4",
    "MEMORY": "16384",
    "RESERVED_SWAP": "0",
    "RESERVED_DISK": "0",
    "START": "True",
    "SUSPEND": "False",
    "PREEMPT": "False",
    "KILL": "False",
    "RANK": "0",
    "NEGOTIATOR_CONSIDER_PREEMPTION": "False",
    "NUM_SLOTS": "1",
    "NUM_SLOTS_TYPE_1": "1",
    "SLOT_TYPE_1": "100%",
    "SLOT_TYPE_1_PARTITIONABLE": "True",
    # Root's control groups are not ours to use.
    "BASE_CGROUP": "",
    "JAVA": "",
    "SINGULARITY": "/bin/false",
    "DOCKER": "",
}
