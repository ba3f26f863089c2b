"""`segue login`: keep a Weights & Biases key for jobs, in a file that only its owner can read.

The key comes from a prompt or from standard input, never from the command line, where everybody on the access point could see it.
"""

from __future__ import annotations

import re
import sys

import click

from agent.errors import BadInput, SegueError

_KEY = re.compile(r"[A-Za-z0-9_-]{16,256}")


@click.command()
def command() -> None:
    """Keep a W&B key (https://wandb.ai/authorize) for the jobs of your runs.

    Asks for it on a terminal; otherwise reads one line from standard input.
    """
    from dagman.wandb_key import write_key

    typed = click.prompt("W&B key", hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.readline()
    key = str(typed).strip()
    if not _KEY.fullmatch(key):
        raise BadInput("that is no W&B key (one word of letters and digits): copy it from https://wandb.ai/authorize")
    try:
        path = write_key(key)
    except OSError as error:
        raise SegueError(
            f"{error.filename}: cannot be written ({error.strerror}): check the directory's owner and mode"
        ) from error
    click.echo(
        f"segue: the key is in {path}, for you alone; runs with a [wandb] table take it with their jobs", err=True
    )
