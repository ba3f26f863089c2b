"""`python -m jobs.convert OPTIONS-AS-JSON`: the conversion in this Python, for `segue convert --python`.

Prints the result as JSON on stdout; ends with the exit code of the error, and its sentence on stderr.
"""

from __future__ import annotations

import sys

from agent.errors import SegueError


def main() -> int:
    """Run it; returns the exit code."""
    from jobs.convert.conversion import convert
    from jobs.convert.options import load

    try:
        print(convert(load(sys.argv[1])).dump())
    except SegueError as error:
        print(f"segue: error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("segue: interrupted; run the same command again, it goes on where it stopped", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
