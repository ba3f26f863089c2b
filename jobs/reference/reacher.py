"""MuJoCo's Reacher-v5 (gymnasium): the arm, its expert by inverse kinematics, and what counts as success.

One place for all facts of the arm: what a policy may see, where the camera hangs, when the target is reached.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from agent.errors import SegueError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]
    Act = Callable[[Any], Floats]

UPPER, LOWER = 0.1, 0.11
"""Lengths of the two links in metres; the fingertip sits at the end of the lower one (reacher.xml)."""
GAIN, DAMPING = 1.0, 0.1
LENGTH = 50
"""Steps of an episode, of 0.02 s each."""
RATE = 50
"""Steps a second."""
NEAR = 0.02
"""Success: the fingertip is this near the target at the end, in metres."""
IMAGE = 64
CAMERA: dict[str, float] = {"distance": 0.62, "azimuth": 90.0, "elevation": -90.0}
"""From straight above, high enough to see all that the arm can reach."""
PROPRIOCEPTION = (0, 1, 2, 3, 6, 7)
"""Of the simulator's ten observations those that do not tell where the target is: cosines and sines of the joints, their velocities."""


class Arm:
    """The simulator. ``camera``: frames can be rendered, 64×64 RGB. A context manager.

    Raises SegueError when gymnasium or mujoco is missing, or when frames cannot be rendered here.
    """

    def __init__(self, camera: bool = False) -> None:
        if camera:
            os.environ.setdefault("MUJOCO_GL", "egl")
        try:
            import gymnasium
        except ImportError as error:
            raise SegueError(f"the simulator is not installed ({error}); pip install 'segue[sim]'") from error
        more: dict[str, Any] = {
            "render_mode": "rgb_array",
            "width": IMAGE,
            "height": IMAGE,
            "default_camera_config": CAMERA,
        }
        try:
            self._env = gymnasium.make("Reacher-v5", max_episode_steps=-1, **(more if camera else {}))
        except (ImportError, gymnasium.error.Error) as error:
            raise SegueError(f"the simulator does not start ({error}); pip install 'segue[sim]'") from error
        self._camera = camera
        self.observation: Any = None
        if camera:
            self.reset(0)
            self._try_camera()

    def _try_camera(self) -> None:
        try:
            frame = self.image()
        except Exception as error:  # each GL platform raises its own
            raise SegueError(_NO_CAMERA.format(error=f"{type(error).__name__}: {error}")) from error
        if not frame.any():
            raise SegueError(_NO_CAMERA.format(error="the rendered frame is black"))

    def __enter__(self) -> Arm:
        return self

    def __exit__(self, *reason: object) -> None:
        self._env.close()

    def reset(self, seed: int) -> None:
        """Begin the episode of this seed."""
        self.observation = self._env.reset(seed=seed)[0]

    def step(self, action: Floats) -> None:
        """Apply torques (2,), each within -1 and 1, for one step."""
        import numpy as np

        self.observation = self._env.step(np.asarray(action, np.float64))[0]

    def image(self) -> NDArray[np.uint8]:
        """The camera's frame now, (64, 64, 3)."""
        import numpy as np

        frame: Any = self._env.render()
        return np.ascontiguousarray(frame, np.uint8)

    def state(self, camera: bool) -> Floats:
        """What a policy sees of the arm: all (10,), or with a camera only its own joints (6,)."""
        import numpy as np

        seen = np.asarray(self.observation, np.float32)
        return seen[list(PROPRIOCEPTION)] if camera else seen

    def distance(self) -> float:
        """From fingertip to target, in metres."""
        return math.hypot(float(self.observation[8]), float(self.observation[9]))


_NO_CAMERA = "no camera images can be rendered here ({error}); on Debian: apt-get install libegl1 libgl1-mesa-dri; leave MUJOCO_GL unset"


def expert(arm: Arm) -> Floats:
    """Torques towards the joint angles that put the fingertip on the target, the elbow always bent the same way.

    Clipped proportional control: gain 1.0 on the angle's error, damping 0.1 on its velocity.
    """
    import numpy as np

    seen = np.asarray(arm.observation, np.float64)
    first, second = math.atan2(seen[2], seen[0]), math.atan2(seen[3], seen[1])
    x, y = seen[4], seen[5]
    bend = math.acos(min(1.0, max(-1.0, (x * x + y * y - UPPER**2 - LOWER**2) / (2 * UPPER * LOWER))))
    turn = math.atan2(y, x) - math.atan2(LOWER * math.sin(bend), UPPER + LOWER * math.cos(bend))
    error = np.array([_wrapped(turn - first), bend - second])
    return np.clip(GAIN * error - DAMPING * seen[6:8], -1.0, 1.0).astype(np.float32)


def _wrapped(angle: float) -> float:
    return (angle + math.pi) % (2 * math.pi) - math.pi


def success_rate(arm: Arm, act: Act, episodes: int, seed: int, at_start: Callable[[], None] = lambda: None) -> float:
    """Share of episodes (seeds ``seed``, ``seed`` + 1, …) that end with the fingertip within 2 cm of the target.

    ``at_start`` is called at the beginning of each episode.
    """
    reached = 0
    for number in range(episodes):
        arm.reset(seed + number)
        at_start()
        for _ in range(LENGTH):
            arm.step(act(arm))
        reached += arm.distance() <= NEAR
    return reached / episodes
