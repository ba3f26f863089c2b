"""The commands that build and push the training image, as data: they are run where Docker is, and printed where it is not.

The default tag is a digest of what the image is made from (lock file, Dockerfile, install.sh), so that a tag names dependencies,
and a changed line of code needs neither a build nor a push.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from agent.errors import BadInput
from dagman.paths import absolute

PLATFORM = "linux/amd64"


@dataclass(frozen=True)
class ImageSource:
    """The directory with Dockerfile, install.sh and openpi.def, and the OpenPI checkout that the image is for."""

    definitions: Path
    checkout: Path

    def tag(self) -> str:
        """Twelve hexadecimal digits that change when the image's dependencies do."""
        digest = sha256()
        for path in (self.checkout / "uv.lock", self.definitions / "Dockerfile", self.definitions / "install.sh"):
            digest.update(path.read_bytes())
        return digest.hexdigest()[:12]

    def build_command(self, image: str) -> list[str]:
        """docker build; linux/amd64 also on another machine."""
        return [
            "docker",
            "build",
            f"--platform={PLATFORM}",
            f"--build-context=segue={self.definitions}",
            f"--file={self.definitions / 'Dockerfile'}",
            f"--tag={image}",
            str(self.checkout),
        ]

    def apptainer_arguments(self) -> dict[str, str]:
        """Build arguments of openpi.def."""
        return {"OPENPI": str(self.checkout), "SEGUE": str(self.definitions)}


def openpi_source(checkout: Path, definitions: Path | None = None) -> ImageSource:
    """Raises BadInput when the checkout is not OpenPI's, or the definitions are not here (segue installed from a wheel)."""
    place = definitions or Path(__file__).resolve().parents[1] / "images" / "openpi"
    if not (place / "Dockerfile").is_file():
        raise BadInput(f"{place} has no Dockerfile: image definitions are in segue's source checkout, images/openpi")
    checkout = absolute(checkout).resolve()
    for name in ("uv.lock", "pyproject.toml", "src/openpi", "packages/openpi-client"):
        if not (checkout / name).exists():
            raise BadInput(f"{checkout} has no {name}: give the top directory of an OpenPI checkout with --openpi")
    return ImageSource(place, checkout)


def apptainer_command(definition: Path, target: Path, arguments: Mapping[str, str], sandbox: bool) -> list[str]:
    """apptainer build, for a person to run where Apptainer is."""
    told = [f"--build-arg={name}={value}" for name, value in arguments.items()]
    return ["apptainer", "build", *(["--sandbox"] if sandbox else []), *told, str(target), str(definition)]
