"""`python -m tests.halves`: the suite in two processes side by side.

Tests marked `pool` mostly wait for a real HTCondor, the others mostly compute; together they take little longer than the longer half. The
pool's half speaks when it has ended. Exit code 0 when both halves passed.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import tempfile

from cli.ending import clearing_up

_PYTEST = (sys.executable, "-m", "pytest")
# Both would write the same cache of what failed last.
_POOL = (*_PYTEST, "-p", "no:cacheprovider", "-m", "pool")
# pytest's exit code where `-k` leaves a half nothing to do.
_NO_TESTS = 5
_OTHERS = (*_PYTEST, "-m", "not pool")


def main(arguments: list[str]) -> int:
    """Run both halves with ``arguments`` for pytest; returns the exit code."""
    with tempfile.TemporaryFile() as said:
        with (
            clearing_up(),
            subprocess.Popen([*_POOL, *arguments], stdout=said, stderr=subprocess.STDOUT) as pool,
            subprocess.Popen([*_OTHERS, *arguments]) as others,
        ):
            try:
                codes = [others.wait(), pool.wait()]
            except KeyboardInterrupt:  # the terminal has told both halves too; they take down what they started
                others.wait()
                pool.wait()
                return 130
            except SystemExit:  # make, and who ends it, tell this process alone
                pool.send_signal(signal.SIGINT)
                others.send_signal(signal.SIGINT)
                raise
        said.seek(0)
        sys.stdout.write(said.read().decode(errors="replace"))
    wrong = [code for code in codes if code not in (0, _NO_TESTS)]
    return wrong[0] if wrong else min(codes)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
