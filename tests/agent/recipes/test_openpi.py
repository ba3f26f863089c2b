"""OpenPI's JAX trainer: how it is started and resumed, which checkpoints are finished, what is cleaned, what is checked."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agent.config import Wandb
from agent.errors import BadInput
from agent.recipes import recipe
from agent.recipes.base import Progress, Start
from agent.recipes.openpi import TOKENIZER, OpenPI
from tests.agent.recipes.starts import CODE, checkout, saved, start_of, steps, value, with_job

WHOLE = ("_CHECKPOINT_METADATA", "assets/", "params/", "train_state/")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    made = tmp_path / "scratch"
    checkout(made / "code")
    (made / TOKENIZER_PLACE).parent.mkdir(parents=True)
    (made / TOKENIZER_PLACE).touch()
    return made


TOKENIZER_PLACE = f".cache/openpi/{TOKENIZER}"


def start(scratch: Path, options: dict[str, Any] | None = None, **fields: Any) -> Start:
    return start_of(scratch, "openpi", {"config": "pi0_lab", **(options or {})}, **{"code": CODE, **fields})


def resumed(scratch: Path, **fields: Any) -> Start:
    return start(scratch, resume_step=20, resume_label="19", epoch=2, **fields)


def test_first_start_names_config_experiment_and_last_step(scratch: Path) -> None:
    words = OpenPI().command(start(scratch))
    assert words[1:3] == [str(scratch / "code/scripts/train.py"), "pi0_lab"]
    assert value(words, "--exp-name") == "arm"
    assert value(words, "--num-train-steps") == "40"
    assert value(words, "--save-interval") == "10"
    assert value(words, "--checkpoint-base-dir") == str(scratch / "checkpoints")


@pytest.mark.parametrize(
    ("shown", "options", "experiment"),
    [("cup-1", {}, "cup-1"), ("Place the cup", {}, "arm"), ("cup-1", {"exp_name": "mine"}, "mine"), ("a/b", {}, "arm")],
)
def test_wandbs_name_is_the_experiments_where_it_can_name_a_directory(
    scratch: Path, shown: str, options: dict[str, Any], experiment: str
) -> None:
    one = start(scratch, options, wandb=Wandb("arm", "x", name=shown))
    assert value(OpenPI().command(one), "--exp-name") == experiment
    assert OpenPI().checkpoint_root(one) == scratch / "checkpoints/pi0_lab" / experiment


def test_every_start_resumes_and_never_overwrites(scratch: Path) -> None:
    """Without a checkpoint the trainer takes --resume for a first start; the directory is there by then, so it needs one of the two."""
    for one in (start(scratch), resumed(scratch)):
        words = OpenPI().command(one)
        assert "--resume" in words and "--no-overwrite" in words and "--overwrite" not in words


def test_old_checkpoints_are_not_kept_in_scratch_unless_asked(scratch: Path) -> None:
    assert value(OpenPI().command(start(scratch)), "--keep-period") == "None"
    assert value(OpenPI().command(start(scratch, args=("--keep-period=50",))), "--keep-period") == "50"


def test_each_attempt_gets_another_seed(scratch: Path) -> None:
    seeds = [
        value(OpenPI().command(start(scratch, epoch=epoch, start_number=number)), "--seed")
        for epoch in (1, 2, 3)
        for number in (1, 2)
    ]
    assert seeds[0] == "42"
    assert len(set(seeds)) == len(seeds)


def test_fresh_seed_can_be_switched_off_or_given(scratch: Path) -> None:
    assert value(OpenPI().command(resumed(scratch, options={"fresh_seed": False})), "--seed") is None
    assert value(OpenPI().command(resumed(scratch, args=("--seed=7",))), "--seed") == "7"
    assert value(OpenPI().command(start(scratch, {"seed": 7})), "--seed") == "7"


def test_several_gpus_are_sharded_over_unless_told_otherwise(scratch: Path) -> None:
    assert value(OpenPI().command(start(scratch, gpus=1)), "--fsdp-devices") is None
    assert value(OpenPI().command(start(scratch, gpus=4)), "--fsdp-devices") == "4"
    assert value(OpenPI().command(start(scratch, {"fsdp_devices": 1}, gpus=4)), "--fsdp-devices") is None
    assert value(OpenPI().command(start(scratch, gpus=4, args=("--fsdp-devices=2",))), "--fsdp-devices") == "2"


@pytest.mark.parametrize(
    "word",
    ["--resume", "--overwrite", "--exp_name=x", "--num-train-steps=9", "--save_interval=5", "--checkpoint-base-dir=x"],
)
def test_arguments_that_the_recipe_sets_are_refused(scratch: Path, word: str) -> None:
    with pytest.raises(BadInput, match=r"trainer\.args"):
        OpenPI().configure(start(scratch, args=(word,)).job)


def test_at_least_two_updates_are_made_because_label_0_is_never_resumed(scratch: Path) -> None:
    assert value(OpenPI().command(start(scratch, last_step=1)), "--num-train-steps") == "2"


def test_environment_is_the_one_that_labs_need(scratch: Path) -> None:
    told = OpenPI().environment(start(scratch, env={"OPENPI_DATA_HOME": "/elsewhere"}))
    below = ("HOME", "XDG_CACHE_HOME", "UV_CACHE_DIR", "HF_HOME", "HF_DATASETS_CACHE", "HF_LEROBOT_HOME", "WANDB_DIR")
    assert all(Path(told[name]).is_relative_to(scratch) for name in below)
    assert told["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.9"
    assert told["PYTHONPATH"].startswith(str(scratch / "code/src"))
    assert "OPENPI_DATA_HOME" not in told  # run.toml's own value stays


def test_compiled_programs_are_carried_with_a_key_that_is_found_again(scratch: Path) -> None:
    with_gpu = start(scratch, gpus=1)
    assert OpenPI().environment(with_gpu)["JAX_PERSISTENT_CACHE_ENABLE_XLA_CACHES"] == "none"
    assert OpenPI().carried(with_gpu) == (".cache/jax",)


@pytest.mark.parametrize(("gpus", "options"), [(0, {}), (1, {"compile_cache": False})])
def test_no_program_is_taken_from_a_cache_on_a_cpu_or_when_told_so(
    scratch: Path, gpus: int, options: dict[str, Any]
) -> None:
    without = start(scratch, options, gpus=gpus)
    assert OpenPI().environment(without)["JAX_ENABLE_COMPILATION_CACHE"] == "false"
    assert OpenPI().carried(without) == ()


def test_label_k_is_k_plus_1_updates(scratch: Path) -> None:
    root = OpenPI().checkpoint_root(start(scratch))
    saved(root, "9", WHOLE)
    saved(root, "19", WHOLE)
    assert steps(OpenPI().finished(start(scratch))) == [(10, "9"), (20, "19")]


@pytest.mark.parametrize(
    ("label", "entries"),
    [
        ("9.orbax-checkpoint-tmp-4", WHOLE),  # killed while it was written
        ("9", ("assets/", "params/")),  # the trainer would end with a KeyError
        ("9", ()),
        ("0", WHOLE),  # the trainer starts afresh instead of resuming it
    ],
)
def test_what_the_trainer_could_not_resume_is_not_finished(scratch: Path, label: str, entries: tuple[str, ...]) -> None:
    root = OpenPI().checkpoint_root(start(scratch))
    (root / label).mkdir(parents=True)
    saved(root, label, entries)
    assert OpenPI().finished(start(scratch)) == []


def test_label_0_of_a_run_of_one_step_is_finished(scratch: Path) -> None:
    one = with_job(start(scratch), steps=1)
    saved(OpenPI().checkpoint_root(one), "0", WHOLE)
    assert steps(OpenPI().finished(one)) == [(1, "0")]


def test_wandb_id_travels_with_each_checkpoint(scratch: Path) -> None:
    root = OpenPI().checkpoint_root(start(scratch))
    saved(root, "9", WHOLE)
    (root / "wandb_id.txt").write_text("abc", encoding="utf-8")
    assert OpenPI().finished(start(scratch))[0].paths == ("9", "wandb_id.txt")


def test_missing_wandb_id_is_written_before_a_resumed_start(scratch: Path) -> None:
    """The trainer would end with FileNotFoundError when W&B is on and the file is not there."""
    job = resumed(scratch, wandb=Wandb("arms", "arm-1", mode="offline"))
    saved(OpenPI().checkpoint_root(job), "19", WHOLE)
    OpenPI().prepare(job)
    assert (OpenPI().checkpoint_root(job) / "wandb_id.txt").read_text(encoding="utf-8") == "arm-1"


def test_stale_saves_and_later_steps_are_removed_before_a_start(scratch: Path) -> None:
    job = resumed(scratch)
    root = OpenPI().checkpoint_root(job)
    for label in ("19", "29", "39.orbax-checkpoint-tmp-7"):
        saved(root, label, WHOLE)
    OpenPI().prepare(job)
    assert sorted(path.name for path in root.iterdir()) == ["19"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("Step 12: grad_norm=0.1000, loss=2.6257, param_norm=1.0", Progress(13, 2.6257)),
        ("Step 12: loss=nan", Progress(13, float("nan"))),
        ("Saving checkpoint at step 12", None),
    ],
)
def test_progress_lines(line: str, said: Progress | None) -> None:
    found = OpenPI().progress(line)
    assert repr(found) == repr(said)


@pytest.mark.parametrize(
    ("line", "last", "step"),
    [
        ("20:30:39.384 [I] Progress on: 5.00it/42.0it rate:4.1s/it remaining:02:30 elapsed:00:29", 42, 5),
        ("Progress on: 12.3kit/25.1kit rate:1.1it/s remaining:02:30 elapsed:00:29", 25_130, 12_250),
        ("Computing stats:  18%|#8  | 7/40 [00:00<00:00, 67.05it/s]", 42, None),
        ("Progress on: -/42 rate:- remaining:? elapsed:00:00", 42, None),
        (" 50%|#####     | 21/42 [00:00<00:00, 67.05it/s]", 42, 21),
    ],
)
def test_progress_bar_counts_only_over_this_starts_steps(scratch: Path, line: str, last: int, step: int | None) -> None:
    made = OpenPI()
    made.prepare(start(scratch, last_step=last))
    assert made.progress(line) == (Progress(step) if step else None)


def test_tokenizer_that_is_nowhere_is_named_with_its_remedy(scratch: Path) -> None:
    (scratch / TOKENIZER_PLACE).unlink()
    with pytest.raises(BadInput, match=r"tokenizer is missing.*data\.assets"):
        OpenPI().prepare(start(scratch))


def test_tokenizer_is_taken_from_the_image(scratch: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (scratch / TOKENIZER_PLACE).unlink()
    image = tmp_path / "image"
    (image / TOKENIZER).parent.mkdir(parents=True)
    (image / TOKENIZER).write_text("pieces", encoding="utf-8")
    monkeypatch.setenv("OPENPI_DATA_HOME", str(image))
    OpenPI().prepare(start(scratch))
    assert (scratch / TOKENIZER_PLACE).read_text(encoding="utf-8") == "pieces"


def test_config_that_needs_no_tokenizer_can_say_so(scratch: Path) -> None:
    (scratch / TOKENIZER_PLACE).unlink()
    OpenPI().prepare(start(scratch, {"tokenizer": False}))
    OpenPI().prepare(start(scratch, {"config": "debug"}))


def test_missing_config_and_misspelt_option_are_named(scratch: Path) -> None:
    with pytest.raises(BadInput, match=r"trainer\.options\.config"):
        OpenPI().configure(start_of(scratch, "openpi").job)
    with pytest.raises(BadInput, match=r"trainer\.options\.fresh_seeds is unknown"):
        OpenPI().configure(start(scratch, {"fresh_seeds": False}).job)


def test_missing_checkout_is_named(scratch: Path) -> None:
    (scratch / "code/scripts/train.py").unlink()
    with pytest.raises(BadInput, match=r"OpenPI's trainer is not there.*`code`"):
        OpenPI().prepare(start(scratch))


def test_norm_stats_of_the_run_go_before_those_of_the_checkout(scratch: Path) -> None:
    (scratch / "code/assets/pi0_lab").mkdir(parents=True)
    assert value(OpenPI().command(start(scratch)), "--assets-base-dir") == str(scratch / "code/assets")
    (scratch / "assets/pi0_lab").mkdir(parents=True)
    assert value(OpenPI().command(start(scratch)), "--assets-base-dir") == str(scratch / "assets")


def test_recipe_is_found_by_its_name() -> None:
    assert isinstance(recipe("openpi"), OpenPI)
    assert replace(Progress(1), step=2).step == 2


@pytest.mark.parametrize("key", ["norm_stats_frames", "fsdp_devices"])
def test_counts_begin_at_one(scratch: Path, key: str) -> None:
    OpenPI().configure(start(scratch, {key: 1}).job)
    for wrong in (0, -1):
        with pytest.raises(BadInput, match=rf"trainer.options.{key} is {wrong}; it must be at least 1"):
            OpenPI().configure(start(scratch, {key: wrong}).job)


@pytest.mark.parametrize("asset", ["../x", "/x", "a/../../x"])
def test_an_asset_id_stays_below_the_configs_assets(scratch: Path, asset: str) -> None:
    with pytest.raises(BadInput, match=r"trainer.options.asset_id is .* below assets/pi0_lab"):
        OpenPI().configure(start(scratch, {"asset_id": asset}).job)
    OpenPI().configure(start(scratch, {"asset_id": "lab/fold..1"}).job)
