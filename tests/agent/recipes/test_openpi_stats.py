"""Which of OpenPI's configs surely end without normalisation statistics of their own, told from the text of its config file."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import BadInput
from agent.recipes.base import Start
from agent.recipes.openpi import TOKENIZER, OpenPI
from agent.recipes.openpi_pytorch import OpenPIPyTorch
from agent.recipes.openpi_stats import CONFIGS, reads_own
from tests.agent.recipes.starts import CODE, checkout, start_of

# As in OpenPI's src/openpi/training/config.py.
TEXT = """
import openpi.lab as lab
class AssetsConfig: ...
class DataConfigFactory(abc.ABC):
    assets: AssetsConfig = dataclasses.field(default_factory=AssetsConfig)
class FakeDataConfig(DataConfigFactory): ...
class LabDataConfig(DataConfigFactory):
    def create(self, assets_dirs, model_config):
        return dataclasses.replace(self.create_base_config(assets_dirs, model_config), datasets=self.datasets)
class DerivedDataConfig(LabDataConfig): ...
class BringingDataConfig(DataConfigFactory):
    assets: AssetsConfig = AssetsConfig(assets_dir="gs://lab/assets")
class ReadingDataConfig(DataConfigFactory):
    def create(self, assets_dirs, model_config):
        return DataConfig(norm_stats=lab.statistics())
_CONFIGS = [
    TrainConfig(name="own", data=LabDataConfig(repo_id="local/arm", base_config=DataConfig(prompt_from_task=True))),
    TrainConfig(name="derived", data=DerivedDataConfig(repo_id="local/arm", assets=AssetsConfig(asset_id="trossen"))),
    TrainConfig(name="base", data=LabDataConfig(assets=AssetsConfig(assets_dir="gs://openpi-assets/x", asset_id="trossen"))),
    TrainConfig(name="fake", data=FakeDataConfig()),
    TrainConfig(name="none", data=LabDataConfig(repo_id="fake")),
    TrainConfig(name="default"),
    TrainConfig(name="bringing", data=BringingDataConfig(repo_id="local/arm")),
    TrainConfig(name="reading", data=ReadingDataConfig(repo_id="local/arm")),
    TrainConfig(name="elsewhere", data=lab.DataConfig(repo_id="local/arm")),
    TrainConfig(name="imported", data=OtherDataConfig(repo_id="local/arm")),
    TrainConfig(name="spread", data=LabDataConfig(**lab.ARM)),
    TrainConfig(name="named", data=LabDataConfig(assets=lab.ASSETS)),
    TrainConfig(name="twice", data=LabDataConfig()),
    TrainConfig(name="twice", data=LabDataConfig(assets=AssetsConfig(assets_dir="x"))),
    *lab.configs(),
]
"""


@pytest.mark.parametrize(
    ("config", "own"),
    [("own", True), ("derived", True), ("base", False), ("fake", False), ("none", False)]
    + [
        (name, None)
        for name in ("default", "bringing", "reading", "elsewhere", "imported", "spread", "named", "twice", "lab")
    ],
)
def test_where_a_config_reads_its_statistics(config: str, own: bool | None) -> None:
    assert reads_own(TEXT, config) is own


def test_a_text_that_is_no_python_says_nothing() -> None:
    assert reads_own("TrainConfig(", "own") is None


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    made = tmp_path / "scratch"
    checkout(made / "code")
    (made / ".cache/openpi" / TOKENIZER).parent.mkdir(parents=True)
    (made / ".cache/openpi" / TOKENIZER).touch()
    (made / "code" / CONFIGS).parent.mkdir(parents=True)
    (made / "code" / CONFIGS).write_text(TEXT)
    return made


def start(scratch: Path, config: str, *args: str, **options: object) -> Start:
    return start_of(scratch, "openpi", {"config": config, **options}, code=CODE, args=args)


@pytest.mark.parametrize("trainer", [OpenPI, OpenPIPyTorch])
def test_a_config_without_the_statistics_that_it_reads_is_refused_before_the_trainer_starts(
    scratch: Path, trainer: type[OpenPI]
) -> None:
    with pytest.raises(
        BadInput, match=r"assets/own: no norm_stats\.json below it.*trainer\.options\.norm_stats = true"
    ):
        trainer().prepare(start(scratch, "own"))
    for place in ("code/assets/own", "assets/own"):
        path = scratch / place / "local/arm/norm_stats.json"
        path.parent.mkdir(parents=True)
        path.touch()
        trainer().prepare(start(scratch, "own"))
        path.unlink()


def test_no_run_that_may_find_them_elsewhere_is_refused(scratch: Path) -> None:
    for config in ("base", "fake", "imported", "default", "lab"):
        OpenPI().prepare(start(scratch, config))
    OpenPI().prepare(start(scratch, "own", "--assets-base-dir=/opt/assets"))
    OpenPI().prepare(start(scratch, "own", "--data.assets.assets-dir=/opt/assets"))
    (scratch / "code/scripts/own.py").touch()
    OpenPI().prepare(start(scratch, "own", script="scripts/own.py"))
    (scratch / "code" / CONFIGS).unlink()
    OpenPI().prepare(start(scratch, "own"))
