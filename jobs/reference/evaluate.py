"""`python -m jobs.reference.evaluate`: how often a policy brings the fingertip within 2 cm of the target, beside expert and untrained policy."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from agent.errors import BadInput
from jobs.reference.command_line import natural, run_main

if TYPE_CHECKING:
    from jobs.reference.policy import Actor
    from jobs.reference.reacher import Arm


def acting(actor: Actor) -> Any:
    """A function from the arm to torques; policies with a camera see frames and no target."""
    camera = bool(actor.config.image)

    def act(arm: Arm) -> Any:
        return actor(arm.state(camera), arm.image() if camera else None)

    return act


def evaluate(checkpoint: Path, episodes: int, seed: int) -> dict[str, Any]:
    """Success rates from 0 to 1 on the same episodes."""
    from jobs.reference.checkpoints import read_config, read_parameters
    from jobs.reference.policy import Actor, untrained
    from jobs.reference.reacher import Arm, expert, success_rate
    from jobs.reference.sources import opened
    from jobs.reference.train import prepare_jax

    prepare_jax(1)
    with opened(checkpoint) as directory:
        step, config, parameters = int(directory.name), read_config(directory), read_parameters(directory)
    with Arm(camera=bool(config.image)) as arm:
        rates = {
            "policy": success_rate(arm, acting(Actor(config, parameters)), episodes, seed),
            "expert": success_rate(arm, expert, episodes, seed),
            "untrained": success_rate(arm, acting(Actor(config, untrained(config))), episodes, seed),
        }
    return {**rates, "episodes": episodes, "seed": seed, "step": step}


def main(arguments: Sequence[str] | None = None) -> int:
    """Evaluate; JSON on stdout."""
    parser = argparse.ArgumentParser(prog="python -m jobs.reference.evaluate", description=__doc__)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, help="a checkpoint's directory, a commit, or an archive of final/"
    )
    parser.add_argument("--episodes", type=natural, default=100)
    parser.add_argument("--seed", type=int, default=1000)
    options = parser.parse_args(arguments)
    if options.seed < 0:
        raise BadInput(f"--seed {options.seed}: a seed is 0 or greater")
    print(json.dumps(evaluate(options.checkpoint, options.episodes, options.seed)))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
