"""Presets: what a lab learned about GPUs, memory and classes, as data that becomes a run.toml and a plan."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from agent.errors import BadInput
from agent.recipes import recipe
from cli.main import segue
from dagman.foreseen import foresee_or_say
from dagman.prepare import ask, requests
from dagman.presets import initial_text, load_preset, presets, warnings
from dagman.submit import Places, helper, segment

LORA, FULL = ("pi0-lora", "pi05-lora"), ("pi0-full", "pi05-full")


def test_four_presets_are_shipped() -> None:
    assert set(presets()) == {*LORA, *FULL}


@pytest.mark.parametrize("name", [*LORA, *FULL])
def test_preset_becomes_a_run_that_can_be_planned(name: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(segue, ["init", str(tmp_path / "arm"), "--preset", name])
    assert done.exit_code == 0, done.output
    asked = ask(tmp_path / "arm/run.toml")
    assert asked.spec.trainer.recipe == "openpi" and asked.spec.steps == 25_000
    assert asked.spec.data.assets[0].target == ".cache/openpi/big_vision"
    assert asked.plan.needed <= 3


@pytest.mark.parametrize("name", LORA)
def test_lora_fits_on_most_gpus_and_in_short_segments(name: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(initial_text("arm", "chtc", name))
    asked = ask(tmp_path / "run.toml")
    ask_for = asked.spec.resources
    assert (ask_for.gpu_memory_mb, ask_for.gpu_capability, asked.plan.queue_class) == (24_576, 8.0, "short")
    assert ask_for.memory_mb is not None and ask_for.memory_mb >= 100 * 1024
    assert sum(gpu.machines * gpu.per_machine for gpu in asked.plan.gpus) == 110


@pytest.mark.parametrize("name", FULL)
def test_full_fine_tuning_fits_on_h100_and_h200(name: str, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(initial_text("arm", "chtc", name))
    asked = ask(tmp_path / "run.toml")
    ask_for = asked.spec.resources
    assert (ask_for.gpu_memory_mb, ask_for.gpu_capability, asked.plan.queue_class) == (80_000, 9.0, "long")
    assert ask_for.memory_mb is not None and ask_for.memory_mb >= 200 * 1024
    # 13 GB of parameters in float32, held 1.5 times while consolidation restores or halves them.
    assert ask_for.helper_memory_mb is not None and ask_for.helper_memory_mb * 2**20 > 1.5 * 1.5 * 13e9
    assert {gpu.name for gpu in asked.plan.gpus} == {"NVIDIA H100 80GB HBM3", "NVIDIA H200"}


@pytest.mark.parametrize(("table", "asked_for"), [("", 16_384), ("[resources]\nhelper_memory_mb = 32768", 32_768)])
def test_the_other_nodes_ask_for_the_memory_that_the_run_names(table: str, asked_for: int, tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(f'name = "arm"\nsteps = 9\ntrainer.recipe = "command"\n{table}\n')
    asked = ask(tmp_path / "run.toml")
    for node in ("stage", "norm_stats", "consolidate"):
        assert f"request_memory = {asked_for}MB\n" in helper(asked.spec, asked.site, Places(tmp_path), node).text()
    assert "request_memory = 65536MB\n" in segment(asked.spec, asked.site, Places(tmp_path)).text()


def test_plan_says_which_gpus_fit_and_how_many(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(initial_text("arm", "chtc", "pi0-full"))
    told = CliRunner().invoke(segue, ["plan", str(tmp_path / "run.toml")])
    assert told.exit_code == 0, told.output
    assert "NVIDIA H200" in told.output and "16" in told.output and "only 24 of" in told.output
    data = json.loads(CliRunner().invoke(segue, ["plan", str(tmp_path / "run.toml"), "--json"]).stdout)
    assert {gpu["name"]: gpu["count"] for gpu in data["gpus"]} == {"NVIDIA H100 80GB HBM3": 8, "NVIDIA H200": 16}


def gpus(tmp_path: Path, resources: str) -> tuple[list[str], list[str]]:
    """Which of the site's fit by `segue plan`, and what it warns of."""
    text = ['name = "a"', "steps = 10", 'user = "bbadger"', "[trainer]", 'recipe = "command"', "[resources]", resources]
    (tmp_path / "run.toml").write_text("\n".join(text) + "\n")
    asked = ask(tmp_path / "run.toml")
    return [gpu.name for gpu in asked.plan.gpus], [one for one in warnings(asked) if one.startswith("resources.")]


def test_gpus_that_the_users_expression_refuses_do_not_fit(tmp_path: Path) -> None:
    large = ["NVIDIA H100 80GB HBM3", "NVIDIA H200"]
    assert gpus(tmp_path, "requirements = 'regexp(\"H100|H200\", TARGET.GPUs_DeviceName)'")[0] == large
    assert gpus(tmp_path, "requirements = 'TARGET.Elsewhere >= 3 && GPUs_Capability >= 9.0'")[0] == large
    # What the table does not know excludes nothing.
    assert len(gpus(tmp_path, "requirements = 'TARGET.Elsewhere >= 3'")[0]) == 8
    assert len(gpus(tmp_path, "requirements = 'TARGET.Elsewhere =?= true'")[0]) == 8


@pytest.mark.parametrize(
    ("resources", "keys"),
    [
        ("requirements = 'regexp(\"H100\", TARGET.GPUs_DeviceName)'", "requirements"),
        ("gpu_memory_mb = 80000\ngpu_capability = 9.0", "gpu_memory_mb or gpu_capability"),
    ],
)
def test_few_gpus_are_put_down_to_what_run_toml_asks_for(tmp_path: Path, resources: str, keys: str) -> None:
    gpus(tmp_path, resources)
    said = warnings(ask(tmp_path / "run.toml"))
    assert any(line.endswith(f"GPUs fit; asking for less with {keys} would shorten the queue") for line in said)


def test_nominal_memory_of_a_card_is_more_than_it_reports(tmp_path: Path) -> None:
    (said,) = gpus(tmp_path, "gpu_memory_mb = 81920\ngpu_capability = 9.0")[1]
    assert "so 81920 may shut out NVIDIA H100 80GB HBM3: ask for 80000" in said
    assert gpus(tmp_path, "gpu_memory_mb = 80000\ngpu_capability = 9.0")[1] == []


@pytest.mark.parametrize("name", [*LORA, *FULL])
def test_options_of_a_preset_are_those_of_its_recipe(name: str, tmp_path: Path) -> None:
    from agent.config import JobConfig

    trainer = load_preset(name)["trainer"]
    job = JobConfig("arm", str(tmp_path), 1, trainer["recipe"], options=trainer["options"])
    recipe(trainer["recipe"]).configure(job)


def test_plan_warns_of_what_is_not_here_and_says_that_seeds_are_fresh(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(initial_text("arm", "chtc", "pi0-lora").replace("~/.cache", "nowhere"))
    asked = ask(tmp_path / "run.toml")
    said = "\n".join([*foresee_or_say(asked)[1], *warnings(asked)])
    for name in ("my_dataset: dataset", "paligemma_tokenizer.model: tokenizer", "pi0_base: pi0_base"):
        assert f"{name} is not on this machine, and no record says that it was staged" in said
    assert "fresh_seed: each attempt gets its own --seed" in said


def test_dataset_whose_top_directory_is_wrong_is_refused_before_anything_is_staged(tmp_path: Path) -> None:
    (tmp_path / "my_dataset/inner/meta").mkdir(parents=True)
    (tmp_path / "my_dataset/inner/meta/info.json").write_text("{}")
    (tmp_path / "run.toml").write_text(initial_text("arm", "chtc", "pi0-lora"))
    asked = ask(tmp_path / "run.toml")
    with pytest.raises(BadInput, match=r"top directory is wrong: meta/info\.json lies in inner/"):
        requests(asked.spec, asked.run_toml)


def test_plan_warns_when_no_tokenizer_travels(tmp_path: Path) -> None:
    text = initial_text("arm", "chtc", "pi0-lora")
    kept = "\n".join(line for line in text.splitlines() if "paligemma" not in line)
    (tmp_path / "run.toml").write_text(kept)
    assert any("PaliGemma's tokenizer" in line for line in warnings(ask(tmp_path / "run.toml")))


def test_option_that_the_recipe_does_not_have_is_refused_by_plan(tmp_path: Path) -> None:
    text = initial_text("arm", "chtc", "pi0-lora")
    (tmp_path / "run.toml").write_text(text.replace("norm_stats = true", "norm_stat = true"))
    with pytest.raises(BadInput, match=r"run\.toml: trainer\.options\.norm_stat is unknown to recipe 'openpi'"):
        ask(tmp_path / "run.toml")


@pytest.mark.parametrize(
    "option",
    [
        "seed = 1.5",
        'fresh_seed = "false"',
        "fsdp_devices = true",
        "exp_name = 3",
        "compile_cache = 1",
        "bfloat16 = 1",
        'norm_stats_frames = "all"',
        "asset_id = 3",
    ],
)
def test_option_of_the_wrong_type_is_refused_by_plan(option: str, tmp_path: Path) -> None:
    text = initial_text("arm", "chtc", "pi0-lora")
    (tmp_path / "run.toml").write_text(text.replace("[trainer.options]", f"[trainer.options]\n{option}"))
    with pytest.raises(BadInput, match=rf"trainer\.options\.{option.split()[0]} is .*; it must be of type"):
        ask(tmp_path / "run.toml")


def test_reference_has_no_options(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(initial_text("arm", "local", None) + '[trainer.options]\nconfig = "x"\n')
    with pytest.raises(BadInput, match=r"trainer\.options\.config is unknown to recipe 'reference'; it has none"):
        ask(tmp_path / "run.toml")


def test_two_inputs_at_one_place_are_refused(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).write_text(name)
    assets = '[{source = "one", target = "in/x"}, {source = "two", target = "./in//x"}]'
    text = initial_text("arm", "local", None)
    (tmp_path / "run.toml").write_text(text.replace('dataset = "data"', f"assets = {assets}"))
    asked = ask(tmp_path / "run.toml")
    with pytest.raises(BadInput, match=r"run\.toml: data: two inputs have the target 'in/x'.*its own `target`"):
        requests(asked.spec, asked.run_toml)


def test_unknown_preset_is_named_with_those_there_are() -> None:
    with pytest.raises(BadInput, match="--preset pi9: no such preset; there are pi0-full, pi0-lora"):
        load_preset("pi9")
