"""Errors with a sentence for the user: what, where (file, key) and what to do.

They live in the lowest room so that every other room can raise them; the CLI turns them into one line on stderr.
"""

from __future__ import annotations


class SegueError(Exception):
    """A failure that a user can understand and act upon.

    ``exit_code`` is what the command line exits with: 2 for bad input, 1 for a failure.
    """

    exit_code = 1


class ReadDamaged(SegueError):
    """What was read is not what was written. It may be damaged where it lies, or this machine reads badly."""


class CannotRead(SegueError):
    """The disk refused a file that is there: the file may be good, and another machine may read it."""


class BadInput(SegueError):
    """The user's file or arguments are wrong; nothing was changed."""

    exit_code = 2
