"""The command `segue`: one table of commands, each imported when it is used, so that `segue status` starts quickly.

Errors that a user can cause come up as SegueError and leave as one sentence on stderr: exit 2 for bad input, 1 for a failure.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import click

from agent.errors import SegueError

# name -> (module, attribute, one line for --help)
COMMANDS: dict[str, tuple[str, str, str]] = {
    "init": ("cli.init", "command", "Write a commented run.toml to start from."),
    "plan": (
        "cli.plan",
        "command",
        "Say how many segments, in which class, on which GPUs, and what it needs.",
    ),
    "stage": ("cli.stage", "command", "Put dataset, weights and code into staging, once."),
    "dag": ("cli.dag", "command", "Write the DAGMan workflow."),
    "submit": ("cli.submit", "command", "Write the workflow and submit it."),
    "status": ("cli.status", "command", "Where a run is: segments, attempts, commits, what is next."),
    "logs": ("cli.logs", "command", "What the trainer and the agent said."),
    "commits": ("cli.commits", "commits", "List a run's checkpoints in staging."),
    "verify": ("cli.commits", "verify", "Read every byte of every commit and compare."),
    "prune": ("cli.commits", "prune", "Remove commits that the retention does not ask for."),
    "pull": ("cli.pull", "command", "Bring a checkpoint here, verified and unpacked."),
    "serve": ("cli.serve", "command", "Serve a pulled policy and check it."),
    "convert": ("cli.convert", "command", "Robot episodes to a LeRobot dataset."),
    "image": ("cli.image", "command", "Build or push the training image."),
    "login": ("cli.login", "command", "Keep a Weights & Biases key for jobs."),
    "wandb": ("cli.wandb", "command", "Send what W&B wrote offline."),
    "pool": ("cli.pool", "command", "A real HTCondor of your own, without root."),
}


# Click 8.2 has a name for it; 8.1 prints the help itself.
_NO_ARGUMENTS: type[click.ClickException] | tuple[()] = getattr(click.exceptions, "NoArgsIsHelpError", ())


class _Unread(Exception):
    """The reader of our output has gone (`segue status | head`); nothing is wrong."""


@contextlib.contextmanager
def _unread() -> Iterator[None]:
    """Say so in a word that click leaves alone: a broken pipe it answers with exit 1, and so does rich."""
    try:
        yield
    except BrokenPipeError as error:
        raise _Unread from error
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):
            raise _Unread from error
        raise


class LazyGroup(click.Group):
    """Lists COMMANDS and imports a command's module on first use."""

    def make_context(self, *words: Any, **options: Any) -> click.Context:
        """Reading the words of the command line; it prints --help."""
        with _unread():
            return super().make_context(*words, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Running the command."""
        with _unread():
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """In the order in which a user meets them."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now; None for an unknown name."""
        if cmd_name not in COMMANDS:
            return None
        module, attribute, _ = COMMANDS[cmd_name]
        found = getattr(importlib.import_module(module), attribute)
        assert isinstance(found, click.Command)
        return found

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in --help, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, _, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="segue")
def segue() -> None:
    """Long trainings on short queues: one run.toml, a DAGMan workflow, an agent in each job."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        result = segue.main(args=arguments, prog_name="segue", standalone_mode=False)
        sys.stdout.flush()
        return result if isinstance(result, int) else 0
    except click.exceptions.Exit as error:
        return error.exit_code
    except click.Abort as error:
        if not isinstance(error.__cause__, KeyboardInterrupt):
            return _say("aborted", 1)
        return _say("interrupted", 130)
    except KeyboardInterrupt:
        return _say("interrupted", 130)
    except click.ClickException as error:
        if isinstance(error, _NO_ARGUMENTS):
            click.echo(error.format_message(), err=True)  # the command's help
            return error.exit_code
        return _say(f"error: {_sentence(error)}", error.exit_code)
    except SegueError as error:
        return _say(f"error: {error}", error.exit_code)
    except (_Unread, BrokenPipeError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        return _say(f"error: {where}{error.strerror or error}", 1)
    except Exception as error:
        if os.environ.get("SEGUE_DEBUG"):
            raise
        what = " ".join(str(error).split())
        return _say(
            f"error: this is a fault of segue's own ({type(error).__name__}: {what}): please report it with what "
            "SEGUE_DEBUG=1 shows",
            1,
        )


def _say(text: str, code: int) -> int:
    with contextlib.suppress(BrokenPipeError):  # of messages too; the exit code says it all the same
        click.echo(f"segue: {text}", err=True)
    return code


def _sentence(error: click.ClickException) -> str:
    """Click's finding in one line, with the command whose help says more."""
    text = " ".join(error.format_message().split()).rstrip(".")
    if isinstance(error, click.UsageError) and error.ctx is not None:
        text += f"{' See' if text.endswith('?') else '; see'} {error.ctx.command_path} --help"
    return text[:1].lower() + text[1:]


if __name__ == "__main__":
    sys.exit(main())
