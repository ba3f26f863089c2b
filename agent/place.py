"""Where this attempt runs: what HTCondor says about slot, job and limits, or a laptop's stand-ins for it."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from agent.ads import Ad, read

_DEFAULT_VACATE_S = 600.0  # HTCondor's own default of MachineMaxVacateTime
_LAPTOP_VACATE_S = 30.0
_RESTART_MARK = ".segue/restarted"
# What HTCondor writes where GPUs are: 10000 hides them from a job that asked for none.
_NO_GPU = ("", "none", "10000")


@dataclass(frozen=True)
class Place:
    """``began`` is when this process began, in Unix seconds; ``gpus`` how many were assigned; ``in_condor``: a real slot."""

    scratch: Path
    job_ad: Ad
    machine_ad: Ad
    machine: str
    slot: str
    job_id: str
    gpus: int
    began: float
    in_condor: bool
    credentials: Path | None = None
    chirp: Path | None = None
    restarted: float | None = None
    """When the execution before this one ended in this same sandbox (exit 85), None at a first start."""

    @property
    def vacate_s(self) -> float:
        """Seconds between SIGTERM and SIGKILL on an eviction: min(JobMaxVacateTime, MachineMaxVacateTime)."""
        values = [self.job_ad.number("JobMaxVacateTime"), self.machine_ad.number("MachineMaxVacateTime")]
        known = [value for value in values if value is not None and value >= 0]
        if known:
            return min(known)
        return _DEFAULT_VACATE_S if self.in_condor else _LAPTOP_VACATE_S

    @property
    def started(self) -> float:
        """When HTCondor began this execution (JobCurrentStartDate: the shadow's start), or ``began`` where that is not known."""
        date = self.job_ad.number("JobCurrentStartDate")
        return date if date is not None and self.began - 7 * 86400 < date <= self.began else self.began

    @property
    def transfer_s(self) -> float:
        """How long HTCondor moved files before this execution: its inputs, or the checkpoint of the one before."""
        return max(0.0, self.began - (self.restarted or self.started))

    def note_restart(self) -> None:
        """This execution ends now with exit 85; the next one in this sandbox will know. The job ad will not: it is not written again."""
        path = self.scratch / _RESTART_MARK
        try:
            path.parent.mkdir(exist_ok=True)
            path.write_text(f"{time.time():.3f}\n", encoding="ascii")
        except OSError:
            return

    @property
    def queued_s(self) -> float:
        """How long the job waited before this execution, as far as its ad tells."""
        if self.restarted is not None:
            return 0.0
        if self.job_ad.number("JobCurrentStartDate") is None:
            return 0.0
        since = self.job_ad.number("EnteredCurrentStatus")
        queued = self.job_ad.number("QDate")
        starts = self.job_ad.number("NumJobStarts") or 0
        reference = since if starts > 1 and since is not None and since < self.started else queued
        return max(0.0, self.started - reference) if reference is not None else 0.0


def _path(environment: Mapping[str, str], name: str) -> Path | None:
    value = environment.get(name)
    return Path(value) if value else None


def _process_start() -> float:
    """When this process began; now, where /proc does not say."""
    try:
        with open("/proc/self/stat", "rb") as file:  # noqa: PTH123
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        with open("/proc/uptime", "rb") as file:  # noqa: PTH123
            uptime = float(file.read().split()[0])
        return time.time() - max(0.0, uptime - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return time.time()


def look_around(environment: Mapping[str, str] = os.environ) -> Place:
    """The place of this process. Without HTCondor the current directory is the scratch directory."""
    scratch = _path(environment, "_CONDOR_SCRATCH_DIR")
    in_condor = scratch is not None
    scratch = scratch or Path.cwd()
    job_ad = read(_path(environment, "_CONDOR_JOB_AD") or (scratch / ".job.ad" if in_condor else None))
    machine_ad = read(_path(environment, "_CONDOR_MACHINE_AD") or (scratch / ".machine.ad" if in_condor else None))
    cluster, process = job_ad.number("ClusterId"), job_ad.number("ProcId")
    assigned = environment.get("_CONDOR_AssignedGPUs") or environment.get("CUDA_VISIBLE_DEVICES") or ""
    return Place(
        scratch=scratch.absolute(),
        job_ad=job_ad,
        machine_ad=machine_ad,
        machine=machine_ad.text("Machine") or os.uname().nodename,
        slot=machine_ad.text("Name") or environment.get("_CONDOR_SLOT", ""),
        job_id=f"{int(cluster)}.{int(process or 0)}" if cluster is not None else "",
        gpus=len([name for name in assigned.split(",") if name.strip() not in _NO_GPU]),
        began=_process_start(),
        in_condor=in_condor,
        credentials=_path(environment, "_CONDOR_CREDS"),
        chirp=_path(environment, "_CONDOR_CHIRP_CONFIG") or (scratch / ".chirp.config" if in_condor else None),
        restarted=_restarted(scratch),
    )


def _restarted(scratch: Path) -> float | None:
    """The time in the mark that the execution before left, which counts for one start only."""
    path = scratch / _RESTART_MARK
    try:
        found = float(path.read_text(encoding="ascii"))
        path.unlink()
    except (OSError, ValueError):
        return None
    return found
