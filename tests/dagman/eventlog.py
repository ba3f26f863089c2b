"""Event logs written by hand, event for event as HTCondor 23.9 and 25.14 wrote them, for the tests of the timeline."""

from __future__ import annotations

from datetime import datetime, timezone

BEGAN = datetime(2026, 11, 25, 20, 0, 0, tzinfo=timezone.utc).timestamp()
HOST = "<127.0.0.1:36747?addrs=127.0.0.1-36747&alias=localhost>"


class EventLog:
    """Appends events; times are seconds after BEGAN. ``version``: whose way of naming the node."""

    def __init__(self, version: str = "25") -> None:
        self.version = version
        self.parts: list[str] = []

    @property
    def text(self) -> str:
        """The log so far."""
        return "".join(self.parts)

    def add(self, number: int, job: str, at: float, said: str, *lines: str) -> EventLog:
        # HTCondor writes local time.
        when = datetime.fromtimestamp(BEGAN + at).strftime("%Y-%m-%d %H:%M:%S")
        self.parts.append("\n".join([f"{number:03d} ({job}) {when} {said}", *lines, "...", ""]))
        return self

    def submit(self, cluster: int, at: float, node: str | None = None) -> EventLog:
        note = []
        if node is not None:
            new = f'    [ DAGNodeName = "{node}"; JobBatchName = "segue run" ]'
            note = [new if self.version == "25" else f"    DAG Node: {node}"]
        return self.add(0, f"{cluster:03d}.000.000", at, f"Job submitted from host: {HOST}", *note)

    def execute(self, cluster: int, at: float, machine: str | None = "gpu1") -> EventLog:
        slot = [f"\tSlotName: slot1_1@{machine}", "\tCpus = 1", "\tMemory = 256"] if machine else []
        return self.add(1, f"{cluster:03d}.000.000", at, f"Job executing on host: {HOST}", *slot)

    def evict(self, cluster: int, at: float, reason: str = "Job vacated by schedd", code: int = 1022) -> EventLog:
        usage = "\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  Run {} Usage"
        return self.add(
            4, f"{cluster:03d}.000.000", at, f"Job was evicted. Code {code} Subcode 0", "\t(0) CPU times",
            usage.format("Remote"), usage.format("Local"), "\t0  -  Run Bytes Sent By Job", "\t0  -  Run Bytes Received By Job",
            f"\tReason: {reason}",
        )  # fmt: skip

    def end(self, cluster: int, at: float, code: int | None = 0, signal: int = 9) -> EventLog:
        how = (
            f"\t(1) Normal termination (return value {code})"
            if code is not None
            else f"\t(0) Abnormal termination (signal {signal})"
        )
        core = [] if code is not None else ["\t(0) No core file"]
        usage = [
            f"\t\tUsr 0 00:00:00, Sys 0 00:00:00  -  {which} Usage"
            for which in ("Run Remote", "Run Local", "Total Remote", "Total Local")
        ]
        return self.add(5, f"{cluster:03d}.000.000", at, "Job terminated.", how, *core, *usage, "\t0  -  Run Bytes Sent By Job")  # fmt: skip

    def hold(self, cluster: int, at: float, reason: str, code: int = 1) -> EventLog:
        return self.add(12, f"{cluster:03d}.000.000", at, "Job was held.", f"\t{reason}", f"\tCode {code} Subcode 0")

    def release(self, cluster: int, at: float) -> EventLog:
        return self.add(13, f"{cluster:03d}.000.000", at, "Job was released.", "\tvia condor_release (by user bbadger)")

    def abort(self, cluster: int, at: float, reason: str = "via condor_rm (by user bbadger)") -> EventLog:
        return self.add(9, f"{cluster:03d}.000.000", at, "Job was aborted.", f"\t{reason}")

    def shadow_exception(self, cluster: int, at: float, message: str) -> EventLog:
        return self.add(7, f"{cluster:03d}.000.000", at, "Shadow exception!", f"\t{message}",
                        "\t0  -  Run Bytes Sent By Job", "\t0  -  Run Bytes Received By Job")  # fmt: skip

    def disconnect(self, cluster: int, at: float) -> EventLog:
        return self.add(22, f"{cluster:03d}.000.000", at, "Job disconnected, attempting to reconnect",
                        "    Socket between submit and execute hosts closed unexpectedly",
                        f"    Trying to reconnect to slot1_1@gpu1 {HOST}")  # fmt: skip

    def reconnect(self, cluster: int, at: float) -> EventLog:
        return self.add(23, f"{cluster:03d}.000.000", at, "Job reconnected to slot1_1@gpu1",
                        f"    startd address: {HOST}", f"    starter address: {HOST}")  # fmt: skip

    def reconnect_failed(self, cluster: int, at: float) -> EventLog:
        return self.add(24, f"{cluster:03d}.000.000", at, "Job reconnection failed",
                        "    Job not found at execution machine",
                        "    Can not reconnect to slot1_1@gpu1, rescheduling job")  # fmt: skip

    def preskip(self, node: str, at: float, serial: int = 1) -> EventLog:
        return self.add(34, f"000.2147483647.{serial:03d}", at, "PRE script return value is PRE_SKIP value",
                        f"    DAG Node: {node}")  # fmt: skip
