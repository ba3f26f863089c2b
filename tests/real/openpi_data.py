"""A LeRobot dataset as OpenPI's example for LIBERO makes one, and a tokenizer, both small and made from a seed.

    HF_LEROBOT_HOME=DIR python openpi_data.py TOKENIZER.model        run with OpenPI's own environment

PaliGemma's tokenizer cannot be had without a network; any sentencepiece model takes its place for a model that is trained from nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import sentencepiece
from lerobot.common.datasets.lerobot_dataset import LeRobotDataset

DATASET = "local/lab"
EPISODES, FRAMES, SIDE = 4, 20, 64
TASKS = ("pick up the cup", "put the cup down")


def dataset() -> None:
    """Two cameras, a state of 8 and actions of 7."""
    random = np.random.default_rng(0)
    image = {"dtype": "image", "shape": (SIDE, SIDE, 3), "names": ["height", "width", "channel"]}
    features = {
        "image": image,
        "wrist_image": image,
        "state": {"dtype": "float32", "shape": (8,), "names": ["state"]},
        "actions": {"dtype": "float32", "shape": (7,), "names": ["actions"]},
    }
    made = LeRobotDataset.create(repo_id=DATASET, robot_type="panda", fps=10, features=features)
    for episode in range(EPISODES):
        for _ in range(FRAMES):
            made.add_frame(
                {
                    "image": random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
                    "wrist_image": random.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8),
                    "state": random.normal(size=8).astype(np.float32),
                    "actions": random.normal(size=7).astype(np.float32),
                    "task": TASKS[episode % len(TASKS)],
                }
            )
        made.save_episode()


def tokenizer(path: Path) -> None:
    """Letters and a few words: far below the 2048 that the small model knows."""
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([*TASKS, "abcdefghijklmnopqrstuvwxyz 0123456789"] * 20),
        model_prefix=str(path.with_suffix("")),
        vocab_size=60,
        hard_vocab_limit=False,
        user_defined_symbols=["\n"],
        minloglevel=2,
    )


if __name__ == "__main__":
    dataset()
    tokenizer(Path(sys.argv[1]))
