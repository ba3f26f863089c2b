"""Which place a run's staging is, from run.toml and its site: what the access point, the laptop and the lab's server have in common.

A site with a transfer host is reached through it from everywhere but the host itself, as CHTC asks (file-avail-largedata): an access
point, too, leaves large transfers to it.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agent.config import load
from agent.errors import BadInput
from dagman.runs import run_file
from dagman.shipping.place import Here, Place, There
from dagman.shipping.ssh import Connection
from dagman.site import Site, load_site
from dagman.spec import Spec, load_spec
from dagman.workflow import staging_of


@dataclass(frozen=True)
class Destination:
    """``host`` empty: the directory ``staging`` of this machine. ``makes_staging``: the site's own directory, made when it is not there.

    ``generated``: run.toml is the copy in a workflow directory.
    """

    run_toml: Path
    spec: Spec
    site: Site
    host: str
    staging: Path
    makes_staging: bool = False
    generated: bool = False


def destination(run: Path, mounted: bool = False, inputs: bool = False) -> Destination:
    """From a run.toml, or a directory with one. ``mounted``: use staging as this machine sees it, whatever the site's transfer host;
    ``inputs``: only inputs are meant, which a site with transfer rules brings from staging to jobs that mount none.

    BadInput for anything wrong in run.toml.
    """
    run_toml = run_file(run)
    spec = load_spec(run_toml)
    site = _site(spec, run_toml)
    if spec.agent.checkpoint_exit and not (inputs and site.staging.transfers):
        raise BadInput(
            f"{run_toml}: agent.checkpoint_exit: such a run keeps nothing in staging; its inputs travel from the access point and "
            "its checkpoints are in HTCondor's hands"
        )
    host = "" if mounted else spec.transfer_host or site.transfer_host
    if host.startswith("-"):
        raise BadInput(f"{run_toml}: site {spec.site}: transfer_host: {host!r} is no name of a host")
    account, at, machine = host.rpartition("@")
    if machine and spec.transfer_host is None and socket.getfqdn() == machine:
        host = ""
    if host and not at and spec.user is not None:
        host = f"{spec.user}@{host}"
    staging = staging_of(spec, site, run_toml)
    generated = run_toml.with_name("job.json")
    if generated.is_file():
        # The copy in a workflow directory: what is relative in it was meant from somewhere else.
        return Destination(run_toml, spec, site, host, Path(load(generated).staging), generated=True)
    if account and spec.user is None and spec.staging is None:
        # The netid of a run.toml that names it with the host alone.
        staging = site.staging_path(run_toml.parent, account)
    makes = not host and spec.staging is None and "{directory}" in site.staging.path
    return Destination(run_toml, spec, site, host, staging, makes)


def _site(spec: Spec, run_toml: Path) -> Site:
    beside = run_toml.parent
    if run_toml.with_name("job.json").is_file() and not (beside / spec.site).is_file():
        beside = beside.parent
    try:
        return load_site(spec.site, beside)
    except BadInput as error:
        raise BadInput(f"{run_toml}: {error}") from None


@contextmanager
def opened(where: Destination) -> Iterator[Place]:
    """The place, with its connection for as long as the block runs. Raises CannotConnect, BadInput."""
    if not where.host:
        yield Here(where.staging)
        return
    with Connection(where.host) as link:
        yield There(link, str(where.staging))


def unusable(where: Destination, place: Place, problem: str) -> BadInput:
    """Why staging cannot be used there, naming the key to correct."""
    key = "staging" if where.spec.staging is not None else "user"
    remedy = (
        "correct `staging`"
        if key == "staging"
        else "correct `user` (your netid there), or give your directory as `staging`"
    )
    said = {
        "missing": f"there is no directory {place.name}: {remedy}",
        "no-directory": f"{place.name} is no directory: {remedy}",
        "not-writable": f"you may not write to {place.name}: {remedy}, or have its mode changed",
    }[problem]
    return BadInput(f"{where.run_toml}: {key}: {said}")
