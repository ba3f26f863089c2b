"""What staging looks like before anything is sent: archives, room, tools. One script for a host's /bin/sh, one reader of what it prints.

Standard tools only (POSIX sh, GNU stat and find); what a host lacks is left out and the next bound counts.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from agent.store.budget import Room, Usage, quotas_room

INPUTS = "segue/_inputs"
_PARTIAL = ".partial"
_NOTHING = Usage(0, 0)


def partial_name(archive: str) -> str:
    """Under which an archive is uploaded; never read by a job."""
    return f".{archive}{_PARTIAL}"


@dataclass(frozen=True)
class Survey:
    """``problem``: why staging cannot be used (missing, no-directory, not-writable), else empty. Sizes are bytes.

    ``archives`` and ``partial`` are those of ``_inputs``, by the archive's name; ``quotas``: what CephFS or ``get_quotas`` says;
    ``used``: all of staging, None where a quota made counting needless; ``run``: the run's own directory; ``free``: the file system.
    """

    problem: str = ""
    archives: Mapping[str, int] = field(default_factory=dict)
    partial: Mapping[str, int] = field(default_factory=dict)
    quotas: tuple[Room, ...] = ()
    used: Usage | None = None
    run: Usage = _NOTHING
    free: Room | None = None
    tools: frozenset[str] = frozenset()


def script(staging: str, run: str) -> str:
    """Prints what ``read`` understands."""
    return f"""\
staging={shlex.quote(staging)}
run={shlex.quote(run)}
inputs="$staging/{INPUTS}"
count() {{ find "$1" -printf '%s\\n' 2>/dev/null | awk '{{ bytes += $1; items++ }} END {{ printf "%s %.0f %d\\n", name, bytes, items }}' name="$2"; }}
{USABLE}
for tool in rsync sha256sum get_quotas getfattr; do command -v "$tool" >/dev/null 2>&1 && echo "tool $tool"; done
if [ -d "$inputs" ]; then
    find "$inputs" -maxdepth 1 -type f -printf 'file %s %f\\n' 2>/dev/null
fi
known=
if command -v getfattr >/dev/null 2>&1; then
    above=$staging
    while [ -n "$above" ] && [ "$above" != / ] && [ "$above" != . ]; do
        for key in quota.max_bytes quota.max_files dir.rbytes dir.rentries; do
            value=$(getfattr --only-values --absolute-names -n "ceph.$key" "$above" 2>/dev/null </dev/null) && echo "ceph $key ${{value:-0}} $above"
            case $key=$value in quota.*=*[1-9]*) known=yes ;; esac
        done
        above=$(dirname "$above")
    done
fi
if command -v get_quotas >/dev/null 2>&1; then
    get_quotas 2>/dev/null </dev/null | sed 's/^/quotas /'
fi
[ -d "$staging/segue/$run" ] && count "$staging/segue/$run" run
[ -n "$known" ] || count "$staging" used
df -Pk "$staging" 2>/dev/null | awk 'END {{ if (NR > 1) printf "free %.0f\\n", $4 * 1024 }}'
"""


# Ends the script when staging is no place to write; wants $staging.
USABLE = """\
[ -e "$staging" ] || { echo "problem missing"; exit 0; }
[ -d "$staging" ] || { echo "problem no-directory"; exit 0; }
top=$staging
for below in "$staging/segue" "$staging/segue/_inputs"; do [ -d "$below" ] && top=$below; done
[ -w "$top" ] && [ -x "$top" ] || { echo "problem not-writable"; exit 0; }"""


def read(lines: Iterable[str], staging: str) -> Survey:
    """The survey that ``script`` printed."""
    files: dict[str, int] = {}
    ceph: dict[str, dict[str, int]] = {}
    usages: dict[str, Usage] = {}
    quotas: list[str] = []
    tools: set[str] = set()
    problem, free = "", None
    for line in lines:
        key, _, rest = line.partition(" ")
        words = rest.split(" ")
        if key == "problem":
            problem = rest
        elif key == "tool":
            tools.add(rest)
        elif key == "quotas":
            quotas.append(rest)
        elif key == "file" and words[0].isdigit():
            files[rest.partition(" ")[2]] = int(words[0])
        elif key == "ceph" and len(words) >= 3 and words[1].isdigit():
            ceph.setdefault(rest.split(" ", 2)[2], {})[words[0]] = int(words[1])
        elif key in ("run", "used") and len(words) == 2 and all(word.isdigit() for word in words):
            usages[key] = Usage(int(words[0]), int(words[1]))
        elif key == "free" and rest.isdigit():
            free = Room("the file system", int(rest), None)
    archives, partial = sorted_names(files)
    return Survey(
        problem,
        archives,
        partial,
        tuple(ceph_quotas(ceph))
        or tuple(room for room in [quotas_room("\n".join(quotas), staging)] if room is not None),
        usages.get("used"),
        usages.get("run", _NOTHING),
        free,
        frozenset(tools),
    )


def sorted_names(files: Mapping[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    """Finished archives and unfinished uploads, both by the archive's name."""
    archives = {name: size for name, size in files.items() if name.endswith(".tar") and not name.startswith(".")}
    partial = {
        name[1 : -len(_PARTIAL)]: size
        for name, size in files.items()
        if name.startswith(".") and name.endswith(f".tar{_PARTIAL}")
    }
    return archives, partial


def ceph_quotas(found: Mapping[str, Mapping[str, int]]) -> list[Room]:
    """As agent.store.budget has them, the nearest directory's first; ``found``: attributes by directory."""
    rooms = []
    for above in sorted(found, key=len, reverse=True):
        told = found[above]
        most_bytes, most_items = told.get("quota.max_bytes", 0), told.get("quota.max_files", 0)
        if most_bytes or most_items:
            rooms.append(
                Room(
                    f"the quota of {above}",
                    most_bytes - told.get("dir.rbytes", 0) if most_bytes else None,
                    most_items - told.get("dir.rentries", 0) if most_items else None,
                )
            )
    return rooms


@dataclass(frozen=True)
class Limits:
    """What the site gives a user in staging, and what the run may occupy; None: no bound."""

    site_bytes: int | None
    site_items: int | None
    run_bytes: int | None
    run_items: int | None


def rooms(survey: Survey, limits: Limits, inputs: Usage) -> list[Room]:
    """All bounds that count. ``inputs``: what the run's own inputs occupy in staging now."""
    found = list(survey.quotas)
    if not found and survey.used is not None and (limits.site_bytes or limits.site_items):
        found.append(_left("the site's default quota", limits.site_bytes, limits.site_items, survey.used))
    if limits.run_bytes is not None or limits.run_items is not None:
        own = Usage(survey.run.bytes + inputs.bytes, survey.run.items + inputs.items)
        found.append(_left("run.toml's [budget]", limits.run_bytes, limits.run_items, own))
    if survey.free is not None:
        found.append(survey.free)
    return found


def _left(source: str, most_bytes: int | None, most_items: int | None, used: Usage) -> Room:
    return Room(
        source,
        None if most_bytes is None else most_bytes - used.bytes,
        None if most_items is None else most_items - used.items,
    )


def too_small(bounds: Sequence[Room], needed: Usage) -> Room | None:
    """The first bound that does not hold what is needed."""
    for room in bounds:
        if room.bytes is not None and needed.bytes > room.bytes:
            return room
        if room.items is not None and needed.items > room.items:
            return room
    return None


def tightest(bounds: Sequence[Room]) -> Room | None:
    """The bound that leaves the fewest bytes."""
    counted = [room for room in bounds if room.bytes is not None]
    return min(counted, key=lambda room: room.bytes or 0) if counted else None
