"""Name and tags of run.toml for a W&B run whose trainer gave it its own, which go before the WANDB_* variables.

OpenPI's first start names the run after its experiment, LeRobot's trainer sets its tags at every start. So the run is put right once it
is there: its name becomes run.toml's, run.toml's tags are added to the trainer's. One question and at most one change, in the words of
W&B's own client (0.19 to 0.31, `wandb.apis.public.Run`); the client itself is not used, because its `update` also writes back configuration
and summary as it read them, under the trainer's feet, and leaves a service process behind.
"""

from __future__ import annotations

import base64
import json
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import TYPE_CHECKING, Any

from agent.errors import SegueError
from agent.wandb_run import DEFAULT_URL

if TYPE_CHECKING:
    from agent.config import Wandb

_LIMIT_S = 20.0
_MOST_BYTES = 1 << 20
_ENTITY = "query { viewer { entity } }"
_RUN = (
    "query ($entity: String!, $project: String!, $run: String!) "
    "{ project(name: $project, entityName: $entity) { run(name: $run) { id displayName tags } } }"
)
_CHANGE = "mutation ($id: String!%s) { upsertBucket(input: {id: $id%s}) { bucket { id } } }"
_TYPES = {"displayName": "String", "tags": "[String!]"}


@dataclass(frozen=True)
class Server:
    """Where W&B's server is (``WANDB_BASE_URL`` or W&B's own), with the key and a file of certificates."""

    key: str
    url: str = DEFAULT_URL
    certificates: str | None = None

    def ask(self, query: str, variables: Mapping[str, Any]) -> dict[str, Any]:
        """The data that answers a GraphQL operation; raises OSError, HTTPException or ValueError."""
        word = base64.b64encode(f"api:{self.key}".encode()).decode("ascii")
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json"},
        )
        request.add_unredirected_header("Authorization", f"Basic {word}")  # an answer may send it to any other server
        context = ssl.create_default_context(cafile=self.certificates) if self.url.startswith("https:") else None
        with urllib.request.urlopen(request, timeout=_LIMIT_S, context=context) as answer:
            said = json.loads(answer.read(_MOST_BYTES))
        if said.get("errors") or not isinstance(said.get("data"), dict):
            raise ValueError(_why(said))
        return dict(said["data"])


def label(server: Server, wandb: Wandb, identity: str) -> None:
    """Give the run ``identity`` run.toml's name and tags, where it has not got them. Raises SegueError with what went wrong."""
    try:
        _label(server, wandb, identity)
    except urllib.error.HTTPError as error:
        try:
            why = _why(json.loads(error.read(_MOST_BYTES)))
        except (OSError, ValueError, HTTPException):
            why = str(error)
        raise _failed(why) from error
    except (OSError, ValueError, TypeError, AttributeError, KeyError, HTTPException) as error:  # whatever it answered
        raise _failed(str(getattr(error, "reason", error)) or repr(error)) from error


def _label(server: Server, wandb: Wandb, identity: str) -> None:
    entity = wandb.entity or server.ask(_ENTITY, {})["viewer"]["entity"]
    answer = server.ask(_RUN, {"entity": entity, "project": wandb.project, "run": identity})
    run = (answer.get("project") or {}).get("run")
    if run is None:
        raise ValueError(f"there is no run {entity}/{wandb.project}/{identity}")
    has = list(run["tags"] or ())
    missing = [tag for tag in wandb.tags if tag not in has]
    change: dict[str, Any] = {}
    if wandb.name and run["displayName"] != wandb.name:
        change["displayName"] = wandb.name
    if missing:
        change["tags"] = has + missing
    if change:
        declared = "".join(f", ${name}: {_TYPES[name]}" for name in change)
        given = "".join(f", {name}: ${name}" for name in change)
        server.ask(_CHANGE % (declared, given), {"id": run["id"], **change})


def _why(said: Any) -> str:
    """The server's own words."""
    errors = said.get("errors") if isinstance(said, dict) else None
    first = errors[0] if isinstance(errors, list) and errors else said
    return str(first.get("message", first) if isinstance(first, dict) else first)[:300]


def _failed(why: str) -> SegueError:
    return SegueError(f"W&B's run did not get the name and tags of run.toml ({why}): give them to it on its page")
