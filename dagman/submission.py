"""Giving a .dag file to HTCondor with its own condor_submit_dag, so that `segue submit` does what a person would do by hand."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

from agent.errors import SegueError

_CLUSTER = re.compile(r"submitted to cluster (\d+)")


def by_hand(dag: Path) -> str:
    """The command that submits the .dag file as `submit_dag` does: with -f when an earlier submission left something behind.

    Without it HTCondor refuses, or goes on from a rescue file: staging alone says where the run is, and a rescue file would hold segments to
    be done that made too few steps.
    """
    left = [f"{dag.name}.{suffix}" for suffix in ("condor.sub", "dagman.log", "lib.out", "lib.err")]
    again = any((dag.parent / name).exists() for name in left) or any(dag.parent.glob(f"{dag.name}.rescue[0-9]*"))
    return shlex.join(["condor_submit_dag", *(["-f"] if again else []), str(dag)])


def submit_dag(dag: Path) -> int:
    """Submit; returns the cluster of DAGMan's own job. SegueError with HTCondor's own words when it refuses.

    An earlier DAG's leftovers are replaced (-f), its rescue file too, for the reason above.
    """
    program = shutil.which("condor_submit_dag")
    if program is None:
        raise SegueError(
            "condor_submit_dag is not on PATH: submit on an access point, or on a pool of your own with `segue pool up` and "
            "`segue pool run -- segue submit …`"
        )
    # The name in the queue; DAGMan's default would be the path of the file.
    options = ["-f", "-batch-name", f"segue {dag.stem}", "-notification", "never"]
    done = subprocess.run([program, *options, str(dag)], cwd=dag.parent, capture_output=True, text=True, check=False)
    found = _CLUSTER.search(done.stdout)
    if done.returncode != 0 or found is None:
        said = " ".join((done.stderr.strip() or done.stdout.strip()).split())
        raise SegueError(f"{dag}: HTCondor refused the workflow: {said[-600:] or f'exit {done.returncode}'}")
    return int(found[1])
