"""The plan is arithmetic: enough segments, none that cannot make a step, and a remedy when it cannot be done."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.errors import BadInput
from dagman.plan import make_plan, young_daly_steps
from dagman.prepare import Asked, ask, prepare
from dagman.presets import warnings
from dagman.site import Site, load_site
from dagman.spec import Spec
from tests.dagman.samples import GOLDEN

CHTC, LOCAL = load_site("chtc", Path()), load_site("local", Path())


def spec(steps: int, site: str = "local", **tables: object) -> Spec:
    return Spec.model_validate(
        {"name": "run", "site": site, "steps": steps, "trainer": {"recipe": "command"}, **tables}
    )


@given(
    steps=st.integers(1, 200_000),
    step_s=st.floats(0.001, 60),
    queue_class=st.sampled_from(sorted(LOCAL.classes)),
    others=st.tuples(*[st.floats(0, 10)] * 4),
    site=st.sampled_from([CHTC, LOCAL]),
)
def test_segments_are_enough_and_each_fits_its_class(
    steps: int, step_s: float, queue_class: str, others: tuple[float, ...], site: Site
) -> None:
    name = queue_class if queue_class in site.classes else site.default_class
    pace = dict(zip(("startup_s", "restore_s", "save_s", "publish_s"), others, strict=True))
    asked = spec(steps, pace={"step_s": step_s, **pace}, segments={"class": name})
    try:
        plan = make_plan(asked, site)
    except BadInput as error:
        assert "is shorter than one step plus one publish" in str(error) or "take a longer class" in str(error)
        return
    assert plan.needed * plan.steps_per_segment >= steps > (plan.needed - 1) * plan.steps_per_segment
    spent = plan.margin_s + sum(others) + plan.steps_per_segment * step_s
    assert spent <= plan.limit_s * (1 + 1e-9) + 1e-6 * step_s
    assert plan.reserve >= 2 and plan.segments == plan.needed + plan.reserve <= 10_000


def test_class_shorter_than_one_step_and_publish_names_one_that_is_long_enough() -> None:
    with pytest.raises(BadInput) as caught:
        make_plan(spec(10, pace={"step_s": 60.0}, segments={"class": "blink"}), LOCAL)
    assert str(caught.value) == (
        "segments.class: blink (20 s) is shorter than one step plus one publish: margin 1 s + start-up 6 s + restore 1 s + save 0.5 s "
        "+ publish 1 s + step 60 s = 69.5 s; take class medium"
    )


def test_class_that_is_the_longest_and_too_short_asks_for_measured_values() -> None:
    with pytest.raises(BadInput, match=r"give smaller, measured values in \[pace\]$"):
        make_plan(spec(10, pace={"step_s": 1e6}), CHTC)


def test_unknown_class_lists_those_of_the_site() -> None:
    with pytest.raises(
        BadInput, match=r"segments.class: 'night' is not a class of site local; there are blink, short, medium, long"
    ):
        make_plan(spec(10, segments={"class": "night"}), LOCAL)


def test_save_interval_longer_than_a_segment_would_redo_the_same_steps_for_ever() -> None:
    with pytest.raises(
        BadInput, match=r"segments.save_interval: 5000 steps do not fit .* at most \d+, or leave it out"
    ):
        make_plan(spec(20_000, segments={"save_interval": 5000, "class": "short"}), LOCAL)
    # A run that is shorter than the interval saves at its end.
    assert make_plan(spec(300, segments={"save_interval": 5000, "class": "short"}), LOCAL).needed == 1


def test_count_and_reserve_of_the_user_go_before_the_estimate() -> None:
    plan = make_plan(spec(20_000, segments={"count": 3, "reserve": 0}), LOCAL)
    assert (plan.needed, plan.reserve, plan.segments) == (3, 0, 3)


def test_fewer_segments_than_the_estimate_are_warned_of() -> None:
    asked = spec(20_000, segments={"count": 3, "reserve": 0})
    plan = make_plan(asked, LOCAL)
    said = warnings(Asked(Path("run.toml"), asked, LOCAL, plan, Path()))[0]
    assert said.startswith(f"segments.count: 3 segments make about {3 * plan.steps_per_segment} of 20000 steps")


def test_too_many_segments_asks_for_a_longer_class() -> None:
    with pytest.raises(
        BadInput, match=r"steps: 900000000 steps of 0.05 s make \d+ segments of class blink; take a longer class"
    ):
        make_plan(spec(900_000_000, segments={"class": "blink"}), LOCAL)


@pytest.mark.parametrize(
    ("segments", "said"),
    [
        (
            {"count": 10_000},
            r"segments.count: 10000 segments and 5000 in reserve \(half as many, unless .*\) are more than 10000: give a",
        ),
        (
            {"count": 9_000, "reserve": 2_000},
            "segments.count: 9000 segments and 2000 in reserve are more than 10000: give a smaller segm",
        ),
        (
            {"reserve": 10_000},
            "segments.reserve: 2 segments and 10000 in reserve are more than 10000: take a longer class, or give a sm",
        ),
    ],
)
def test_too_long_a_chain_names_the_key_that_asks_for_it(segments: dict[str, int], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        make_plan(spec(600, segments=segments), LOCAL)
    assert make_plan(spec(600, segments={"count": 10_000, "reserve": 0}), LOCAL).segments == 10_000


def test_run_without_gpus_fits_on_none(tmp_path: Path) -> None:
    asked = spec(100, "chtc", resources={"gpus": 0})
    plan = make_plan(asked, CHTC)
    assert plan.gpus == ()
    assert not any("GPUs fit" in line for line in warnings(Asked(tmp_path / "run.toml", asked, CHTC, plan, Path())))


def test_gpus_that_fit_are_named_and_none_is_refused() -> None:
    plan = make_plan(spec(100, "chtc", resources={"gpu_memory_mb": 80_000}), CHTC)
    assert [gpu.name for gpu in plan.gpus] == ["NVIDIA A100-SXM4-80GB", "NVIDIA H100 80GB HBM3", "NVIDIA H200"]
    with pytest.raises(
        BadInput, match=r"no GPU of CHTC GPU Lab has 200000 MB and capability 0; the largest is NVIDIA H200"
    ):
        make_plan(spec(100, "chtc", resources={"gpu_memory_mb": 200_000}), CHTC)
    assert make_plan(spec(100, "chtc", resources={"gpu_memory_mb": 200_000, "gpus": 0}), CHTC).gpus == ()


@given(st.floats(0.01, 1000), st.floats(0.01, 60), st.floats(60, 1e6))
def test_save_interval_follows_young_and_daly(save_s: float, step_s: float, mean_s: float) -> None:
    steps = young_daly_steps(save_s, step_s, mean_s)
    assert steps >= 1 and abs(steps - math.sqrt(2 * save_s * mean_s) / step_s) <= 1


def test_golden_run_is_planned_in_three_segments() -> None:
    from dagman.spec import load_spec

    plan = make_plan(load_spec(GOLDEN / "chtc" / "run.toml"), CHTC)
    assert plan.usable_s == 43_200 - 864 - (300 + 300 + 60 + 600)
    assert (plan.steps_per_segment, plan.needed, plan.reserve) == (45_640, 2, 2)


def test_plan_says_what_checkpoints_cost_where_no_staging_is_mounted() -> None:
    pace = {"step_s": 0.1, "startup_s": 5, "restore_s": 1, "save_s": 1, "publish_s": 3}
    asked = {"pace": pace, "segments": {"class": "medium", "save_interval": 100}}
    mounted = make_plan(spec(2000, **asked), LOCAL)
    moved = make_plan(spec(2000, **asked, agent={"checkpoint_exit": True}), LOCAL)
    assert mounted.moving is None and moved.moving is not None
    assert (moved.moving.steps, moved.moving.restart_s, moved.moving.share) == (100, 10.0, 0.5)
    assert moved.steps_per_segment % 100 == 0 and moved.needed > mounted.needed
    assert moved.training_s > mounted.training_s + 19 * 10


def test_inputs_travel_with_the_job_where_no_staging_is_mounted(workdir: Path) -> None:
    (workdir / "data").mkdir()
    (workdir / "data" / "episode").write_text("1\n")
    (workdir / "run.toml").write_text(
        'name = "moved"\nsite = "local"\nsteps = 100\n[trainer]\nrecipe = "command"\n[data]\ndataset = "data"\n'
        "[agent]\ncheckpoint_exit = true\n"
    )
    workflow = prepare(ask(workdir / "run.toml"))
    (archive,) = workflow.archives
    texts = {file.path: file.text for file in workflow.files}
    assert (
        archive.name in texts["segment.sub"]
        and "transfer_output_files = handover.json, segue-store" in texts["segment.sub"]
    )
    assert "transfer_input_files = job.json, segue-store" in texts["consolidate.sub"]
    assert "segue-store/README" in texts
    assert workflow.job.inputs[0].travels == "plain" and workflow.job.staging == ""
