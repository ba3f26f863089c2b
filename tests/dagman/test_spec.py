"""run.toml: everything wrong is said at once, with file, key and what is allowed."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.errors import BadInput
from dagman.prepare import ask
from dagman.presets import warnings
from dagman.spec import load_spec, workflow_directory

GOOD = """
name = "reacher"
site = "local"
steps = 400
[trainer]
recipe = "reference"
"""


def written(directory: Path, text: str) -> Path:
    path = directory / "run.toml"
    path.write_text(text, encoding="utf-8")
    return path


def refused(directory: Path, text: str) -> str:
    with pytest.raises(BadInput) as caught:
        load_spec(written(directory, text))
    assert str(directory / "run.toml") in str(caught.value)
    return str(caught.value)


def test_least_run_toml_gets_the_defaults(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path, GOOD))
    assert (spec.name, spec.site, spec.steps, spec.retention.keep, spec.segments.queue_class) == (
        "reacher", "local", 400, 2, None,
    )  # fmt: skip
    assert workflow_directory(spec, tmp_path / "run.toml") == tmp_path / "reacher"


def test_everything_wrong_is_said_at_once(tmp_path: Path) -> None:
    said = refused(
        tmp_path,
        """
name = "two words"
steps = 0
stagging = "/staging"
[trainer]
recipe = "pytorch"
epochs = 3
[segments]
clas = "short"
[retention]
keep = 1
[[data.assets]]
source = "weights"
traget = "w"
""",
    )
    assert "9 things are wrong" in said
    keys = [line.split(":")[0].strip() for line in said.splitlines()[1:]]
    assert keys == [
        "name", "steps", "trainer.recipe", "trainer.epochs", "data.assets[0].target", "data.assets[0].traget",
        "segments.clas", "retention.keep", "stagging",
    ]  # fmt: skip
    for said_of in (
        "trainer.epochs: unknown key; allowed here: recipe, python, args, env, options",
        'segments.clas: unknown key; did you mean "class"? Allowed here: class, count, reserve, save_interval, resumable',
        'data.assets[0].traget: unknown key; did you mean "target"? Allowed here: source, target, name',
        'stagging: unknown key; did you mean "staging"? Allowed here: name, site, user, steps, staging,',
        "retention.keep: must be at least 2 (found 1)",
        "'reference', 'openpi', 'openpi-pytorch', 'lerobot' or 'command' (found 'pytorch')",
        "data.assets[0].target: is required",
    ):
        assert said_of in said


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD.replace("400", '"400"'), "steps: must be a whole number: no quotes, no decimal point, no unit (found '400')"),
        (GOOD.replace("400", "true"), "no unit (found true)"),
        (GOOD + "[budget]\ngb = inf", "budget.gb: must be a finite number"),
        (GOOD + "[agent]\nmargin_s = nan", "agent.margin_s: must be a finite number"),
        (GOOD + "[trainer.options]\nsince = 2026-01-01", "trainer.options: since is a date or time; write it as a string"),
        (GOOD + "[trainer.options]\ndeep = { list = [1, inf] }", "deep.list[1] must be a finite number"),
        (GOOD + '[trainer.options]\nconfig = "a\\u0000b"', "config must not hold a NUL character"),
        (GOOD + '[segments]\nqueue_class = "short"', 'segments.queue_class: unknown key; did you mean "class"? Allowed here: class,'),
        (GOOD.replace('"reacher"', '"a..b"'), "name: must not end in .tar, .toml or .dag, nor hold two dots in a row"),
        (GOOD.replace('"reacher"', '"../up"'), "name: must be letters, digits, dot, underscore or hyphen, at most 64"),
        (GOOD.replace('"reacher"', '"x\\n"'), "name: must be letters, digits, dot, underscore or hyphen, at most 64"),
        ('staging = "/s"\n' + GOOD + "[agent]\ncheckpoint_exit = true", "take `staging` out, or checkpoint_exit"),
        (GOOD + '[[data.assets]]\nsource = "a"\ntarget = "../b"', "data.assets[0].target: must be a path relative to"),
        (GOOD + '[[data.assets]]\nsource = "a"\ntarget = "checkpoints/b"', "must not lie under checkpoints/"),
        (GOOD + '"two\\nlines" = 1', r"'two\nlines': unknown key"),
    ],
)  # fmt: skip
def test_what_toml_allows_and_a_run_does_not_is_named(tmp_path: Path, text: str, said: str) -> None:
    assert said in refused(tmp_path, text)


@pytest.mark.parametrize(
    "name", ["WANDB_API_KEY", "WANDB_KEY", "HF_TOKEN", "my_password", "AWS_ACCESS_KEY_ID", "PRIVATE_KEY", "CREDENTIALS"]
)
def test_name_of_a_secret_is_refused_in_the_environment(tmp_path: Path, name: str) -> None:
    said = refused(tmp_path, GOOD + f'env = {{ {name} = "zebra" }}')
    assert f"{name} looks like a secret" in said and "segue login" in said
    assert "zebra" not in said, "the message must not repeat it"


def test_tokenizers_and_numbers_of_tokens_are_no_secrets(tmp_path: Path) -> None:
    spec = load_spec(written(tmp_path, GOOD + 'env = { TOKENIZERS_PARALLELISM = "false", MAX_TOKENS = "48" }'))
    assert len(spec.trainer.env) == 2


def test_options_named_as_secrets_are_warned_of_without_their_values(tmp_path: Path) -> None:
    args = ["--hf-token=zebra", "--model.max-token-len=48", "--tokenizer=x", "--wandb.api-key", "zebra", "--no-tokens"]
    asked = ask(written(tmp_path, GOOD + f"args = {args}"))
    said = [line for line in warnings(asked) if line.startswith("trainer.args: ")]
    assert [line.split()[1] for line in said] == ["--hf-token", "--wandb.api-key"]
    assert "looks like a secret" in said[0] and not any("zebra" in line for line in said)


def test_a_command_that_is_not_told_where_to_resume_is_warned_of(tmp_path: Path) -> None:
    def said(options: str) -> list[str]:
        text = GOOD.replace('recipe = "reference"', 'recipe = "command"')
        assert text != GOOD
        asked = ask(written(tmp_path, f"{text}args = ['train.py']\n[trainer.options]\n{options}"))
        return [line for line in warnings(asked) if line.startswith("trainer.options.resume: ")]

    (warning,) = said("")
    assert "{resume_path}" in warning and "SEGUE_RESUME_STEP" in warning
    assert said('resume = ["--from={resume_path}"]') == []


@pytest.mark.parametrize("name", ["SEGUE_STEPS", "_CONDOR_SCRATCH_DIR", "TWO WORDS", "1ST"])
def test_other_names_that_cannot_be_set_are_refused(tmp_path: Path, name: str) -> None:
    assert name in refused(tmp_path, GOOD + f'env = {{ "{name}" = "x" }}')


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a = 1\n", "is required"),
        ('name = "x', "not TOML: "),
        ("name = 'x'\nname = 'y'", "not TOML: "),
        (b"name = '\xff'", "not UTF-8 text (byte 8)"),
    ],
)
def test_damaged_file_is_one_message(tmp_path: Path, text: str | bytes, said: str) -> None:
    (tmp_path / "run.toml").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(BadInput) as caught:
        load_spec(tmp_path / "run.toml")
    assert said in str(caught.value) and str(caught.value).startswith(str(tmp_path))


def test_missing_file_names_init(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"run.toml: no such file; `segue init` writes one"):
        load_spec(tmp_path / "run.toml")


@pytest.mark.parametrize(
    "good", ['regexp("H100|H200", TARGET.GPUs_DeviceName)', "TARGET.CUDADriverVersion >= 12 && Machine != \"a.b\""]
)  # fmt: skip
def test_requirements_may_be_any_expression(tmp_path: Path, good: str) -> None:
    spec = load_spec(written(tmp_path, GOOD + f"[resources]\nrequirements = '{good}'"))
    assert spec.resources.requirements == good


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        ("true) || (true", "is not a ClassAd expression"),
        ("TARGET.X ]; y = 1", "is not a ClassAd expression"),
        ("", "must not be empty"),
        ("a /* b", "must not hold a comment"),
        ("a && $(x)", "must not hold $"),
        ('a == \\"$ENV(HOME)\\"', "must not hold $"),
        ("a\\nqueue 5", "must be one line"),
        ("a\\u2028b", "must be one line"),
        ("a \\\\", "must not hold $ nor end in a backslash"),
        ('a == \\"x', "is not a ClassAd expression"),
    ],
)
def test_requirements_cannot_reach_beyond_their_line(tmp_path: Path, bad: str, said: str) -> None:
    assert f"resources.requirements: {said}" in refused(tmp_path, GOOD + f'[resources]\nrequirements = "{bad}"')
