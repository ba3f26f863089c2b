"""A small LeRobot dataset of format v2.1 with one camera, made from a seed.

python lerobot_data.py DIRECTORY        run with an environment that has lerobot 0.3.3
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from lerobot.datasets.lerobot_dataset import LeRobotDataset

EPISODES, FRAMES, SIDE = 4, 20, 64


def main() -> None:
    random = np.random.default_rng(0)
    features = {
        "observation.images.top": {"dtype": "image", "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channel"]},
        "observation.state": {"dtype": "float32", "shape": (4,), "names": ["state"]},
        "action": {"dtype": "float32", "shape": (4,), "names": ["action"]},
    }
    made = LeRobotDataset.create("local/lab", fps=10, features=features, root=Path(sys.argv[1]), use_videos=False)
    for _ in range(EPISODES):
        for _ in range(FRAMES):
            frame = {
                "observation.images.top": random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
                "observation.state": random.normal(size=4).astype(np.float32),
                "action": random.normal(size=4).astype(np.float32),
            }
            made.add_frame(frame, task="reach")
        made.save_episode()


if __name__ == "__main__":
    main()
