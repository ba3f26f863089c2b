"""`python -m jobs.reference.record`: episodes of Reacher-v5 that the expert plays, into one .npz file, or as HDF5 into a directory.

With --camera the file also holds 64×64 frames, and the state is reduced to what the arm knows of itself: where the target is can then
only be seen.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from agent.errors import BadInput
from jobs.reference.command_line import natural, run_main
from jobs.reference.episodes import Episodes, save

TASK = "reach the red target"
_CALM = 10
"""The last steps of an episode are played without disturbance."""


def record(count: int, seed: int, length: int, camera: bool, noise: float) -> tuple[Episodes, float]:
    """``count`` episodes of the seeds from ``seed`` on, ``length`` steps each; and the share that reached the target.

    ``noise``: standard deviation of a disturbance on the torques played. Recorded is what the expert wanted, so that the policy also sees
    how to come back to the path (Laskey et al., DART, 2017).
    """
    import numpy as np

    from jobs.reference.reacher import NEAR, Arm, expert

    states, actions, images, reached = [], [], [], 0
    with Arm(camera) as arm:
        for number in range(count):
            arm.reset(seed + number)
            random = np.random.default_rng([seed + number, 1])
            for step in range(length):
                states.append(arm.state(camera))
                if camera:
                    images.append(arm.image())
                actions.append(expert(arm))
                disturbance = random.normal(0.0, noise, 2) if step < length - _CALM else 0.0
                arm.step(np.clip(actions[-1] + disturbance, -1.0, 1.0).astype(np.float32))
            reached += arm.distance() <= NEAR
    episodes = Episodes(
        np.stack(states),
        np.stack(actions),
        np.repeat(np.arange(count, dtype=np.int32), length),
        np.stack(images) if camera else None,
    )
    return episodes, reached / count


def main(arguments: Sequence[str] | None = None) -> int:
    """Record; JSON on stdout says how many frames and how often the expert reached the target."""
    parser = argparse.ArgumentParser(prog="python -m jobs.reference.record", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the .npz file to write; with --hdf5 the directory")
    parser.add_argument("--hdf5", action="store_true", help="one HDF5 file an episode, in the layout of ALOHA")
    parser.add_argument("--episodes", type=natural, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--length", type=natural, default=50, help="steps of an episode, 0.02 s each")
    parser.add_argument("--camera", action="store_true", help="64×64 frames, and no target in the state")
    parser.add_argument(
        "--noise", type=float, default=0.3, help="disturbance of the torques played, not of those recorded"
    )
    options = parser.parse_args(arguments)
    if options.out.suffix != ".npz" and not options.hdf5:
        raise BadInput(f"--out {options.out}: the file's name must end in .npz")
    if options.hdf5 and not options.camera:
        raise BadInput("--hdf5: the layout of ALOHA has a camera: give --camera too")
    if options.seed < 0:
        raise BadInput(f"--seed {options.seed}: a seed is 0 or greater")
    episodes, rate = record(options.episodes, options.seed, options.length, options.camera, options.noise)
    if options.hdf5:
        from jobs.reference.aloha import write

        write(episodes, options.out, TASK)
    else:
        save(episodes, options.out)
    print(json.dumps({"episodes": options.episodes, "frames": episodes.frames, "expert": rate}))
    return 0


if __name__ == "__main__":
    sys.exit(run_main(main))
