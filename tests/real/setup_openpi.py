"""An environment in which OpenPI's trainers run on a CPU: its own pins, torch without CUDA, its own LeRobot.

    python tests/real/setup_openpi.py --openpi DIR --venv DIR [--lerobot DIR]

What the images do for a GPU, this does for a test; the checkout itself is not written to. Without --lerobot the commit that OpenPI
pins is fetched with git.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

# Versions: OpenPI's uv.lock at 15a9616; torch and torchvision: a CPU build whose wheels are published for new Pythons.
PINS = [
    "jax==0.5.3",
    "jaxlib==0.5.3",
    "flax==0.10.2",
    "orbax-checkpoint==0.11.13",
    "tensorstore==0.1.74",
    "ml-dtypes==0.4.1",
    "numpy==1.26.4",
    "optax==0.2.4",
    "chex==0.1.90",
    "augmax==0.4.1",
    "dm-tree==0.1.9",
    "einops==0.8.1",
    "equinox==0.12.2",
    "flatbuffers==25.2.10",
    "fsspec==2025.3.0",
    "gcsfs==2025.3.0",
    "imageio==2.37.0",
    "jaxtyping==0.2.36",
    "ml-collections==1.0.0",
    "numpydantic==1.6.9",
    "opencv-python-headless==4.11.0.86",
    "pillow==11.2.1",
    "sentencepiece==0.2.0",
    "tqdm-loggable==0.2",
    "typing-extensions==4.13.2",
    "tyro==0.9.22",
    "wandb==0.19.11",
    "filelock==3.18.0",
    "beartype==0.19.0",
    "treescope==0.1.9",
    "transformers==4.53.2",
    "rich==14.0.0",
    "polars==1.30.0",
    "datasets==3.6.0",
    "av",
    "jsonlines==4.0.0",
    "packaging==25.0",
    "draccus==0.10.0",
    "huggingface-hub==0.32.3",
    "safetensors==0.5.3",
    "psutil==7.0.0",
    "tokenizers==0.21.1",
    "websockets==15.0.1",
    "msgpack==1.1.0",
    "humanize==4.12.3",
    "simplejson==3.20.1",
    "absl-py==2.3.0",
    "scipy==1.15.3",
    "typeguard==4.4.2",
    "protobuf==4.25.8",
    "pyarrow==20.0.0",
    "termcolor==3.1.0",
    "pytest",
    "torch==2.13.0",
]
TORCHVISION = "torchvision==0.28.0"
LEROBOT = "git+https://github.com/huggingface/lerobot@0cf864870cf29f4738d3ade893e6fd13fbd7cdb5"


def run(*words: str | Path) -> str:
    """A command whose failure ends this script."""
    done = subprocess.run([str(word) for word in words], check=False, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        raise SystemExit(f"{words[0]} … failed with exit code {done.returncode}; see above")
    return done.stdout.strip()


def purelib(python: Path) -> Path:
    """The environment's site-packages."""
    return Path(run(python, "-c", "import sysconfig; print(sysconfig.get_paths()['purelib'])"))


def without_compiled_operators(site: Path) -> None:
    """torchvision's wheel is compiled for a CUDA build of torch; what the trainers use of it (resizing) is written in Python."""
    (site / "torchvision" / "_meta_registrations.py").write_text("", encoding="utf-8")


def replaced_transformers(openpi: Path, site: Path) -> None:
    """OpenPI's PyTorch models want their own versions of some of transformers' modules."""
    source = openpi / "src/openpi/models_pytorch/transformers_replace"
    for path in source.rglob("*.py"):
        target = site / "transformers" / path.relative_to(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--openpi", type=Path, required=True, help="checkout of OpenPI, commit 15a9616")
    parser.add_argument("--venv", type=Path, required=True, help="the environment to make")
    parser.add_argument(
        "--lerobot", default=LEROBOT, help="checkout of the LeRobot commit that OpenPI pins, or what pip takes"
    )
    parser.add_argument("--python", default=sys.executable, help="a Python 3.11")
    given = parser.parse_args()
    if run(given.python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])") != "3.11":
        raise SystemExit(f"{given.python} is not a Python 3.11, which OpenPI's pins need; name one with --python")
    openpi = given.openpi.resolve()
    if not (openpi / "scripts/train.py").is_file():
        raise SystemExit(f"{openpi} is no checkout of OpenPI: scripts/train.py is missing")
    run(given.python, "-m", "venv", given.venv)
    python = given.venv / "bin/python"
    pip = (python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
    run(*pip, *PINS)
    run(*pip, "--no-deps", TORCHVISION)
    run(*pip, "--no-deps", given.lerobot)
    site = purelib(python)
    without_compiled_operators(site)
    replaced_transformers(openpi, site)
    (site / "openpi-checkout.pth").write_text(f"{openpi}/src\n{openpi}/packages/openpi-client/src\n", encoding="utf-8")
    print(
        run(
            python,
            "-c",
            "import openpi.training.data_loader, jax, torch; print('jax', jax.__version__, 'torch', torch.__version__)",
        )
    )


if __name__ == "__main__":
    main()
