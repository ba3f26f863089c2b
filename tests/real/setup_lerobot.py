"""An environment in which `lerobot-train` 0.3.3 runs on a CPU with few packages.

    python tests/real/setup_lerobot.py --venv DIR

On a user's machine `pip install lerobot==0.3.3` is all there is to do.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from setup_openpi import TORCHVISION, purelib, run, without_compiled_operators

NEEDED = [
    "torch==2.13.0",
    "numpy",
    "datasets==3.6.0",
    "av",
    "jsonlines",
    "packaging",
    "draccus==0.10.0",
    "einops",
    "termcolor",
    "deepdiff",
    "huggingface-hub<1",
    "opencv-python-headless",
    "pillow",
    "psutil",
    "safetensors",
    "gymnasium",
    "wandb",
    "pyserial",
    "imageio[ffmpeg]",
    "pytest",
]
LEROBOT = "lerobot==0.3.3"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--venv", type=Path, required=True, help="the environment to make")
    parser.add_argument("--python", default=sys.executable, help="Python 3.10 to 3.12")
    given = parser.parse_args()
    run(given.python, "-m", "venv", given.venv)
    python = given.venv / "bin/python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, *NEEDED)
    run(*pip, "--no-deps", TORCHVISION, LEROBOT)
    without_compiled_operators(purelib(python))
    print(
        run(
            python,
            "-c",
            "import lerobot.scripts.train, torch; print('lerobot-train is there, torch', torch.__version__)",
        )
    )


if __name__ == "__main__":
    main()
