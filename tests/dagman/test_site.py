"""Sites are data: the shipped ones, a user's own by path, and a twin that differs in paths and limits only."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from agent.errors import BadInput
from dagman.site import load_site, shipped_sites
from tests.dagman.samples import GOLDEN

SITES = Path(__file__).parents[2] / "dagman" / "sites"


@pytest.fixture
def chtc_text() -> str:
    return (SITES / "chtc.toml").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["chtc", "local"])
def test_shipped_site_loads_by_name(name: str) -> None:
    assert name in shipped_sites()
    site = load_site(name, Path())
    assert site.name == name and site.default_class in site.classes
    for queue_class, entry in site.classes.items():
        assert 0 < site.margin_s(queue_class) < entry.limit_s


def test_chtc_is_what_its_guides_say() -> None:
    site = load_site("chtc", Path())
    assert {name: entry.limit_s / 3600 for name, entry in site.classes.items()} == {
        "short": 12,
        "medium": 24,
        "long": 168,
    }
    assert (site.staging.bytes, site.staging.items) == (100e9, 1000)
    assert sum(gpu.machines * gpu.per_machine for gpu in site.gpus) == 122
    assert {gpu.name for gpu in site.fitting_gpus(81_920, 9.0)} == {"NVIDIA H100 80GB HBM3", "NVIDIA H200"}
    assert site.retries <= 2 and site.submit_forbidden_under == ("/staging",)


def test_every_fact_of_chtc_names_its_page(chtc_text: str) -> None:
    # A limit or a rule without its page cannot be checked when the guides change.
    for key in ("limit_s", "bytes", "items", "requirement", "environment", "path", "transfer_host", "retries"):
        for match in re.finditer(rf"^{key} = .*$", chtc_text, re.MULTILINE):
            before = chtc_text[: match.start()].splitlines()[-1]
            assert re.search(
                r"[a-z]+-[a-z]+", match[0].partition("#")[2] + (before if before.startswith("#") else "")
            ), match[0]


@pytest.mark.parametrize(
    ("directory", "size", "url"),
    [
        ("/staging/b/bbadger", 10**9, "osdf:///chtc/staging/b/bbadger/x.tar"),
        ("/staging/b/bbadger", 30 * 10**9 + 1, "file:///staging/b/bbadger/x.tar"),
        ("/staging/groups/lab", 10**9, "file:///staging/groups/lab/x.tar"),
    ],
)
def test_input_travels_as_the_guide_says_for_its_size_and_place(directory: str, size: int, url: str) -> None:
    assert load_site("chtc", Path()).transfer_url(Path(directory) / "x.tar", size) == url


def test_input_that_is_too_large_for_the_site_is_told() -> None:
    with pytest.raises(
        BadInput, match=r"101\.0 GB is more than CHTC GPU Lab lets a job transfer \(100 GB\): make it smaller"
    ):
        load_site("chtc", Path()).transfer_url(Path("/staging/b/bbadger/x.tar"), 101 * 10**9)


def test_staging_path_is_the_users_or_what_the_access_point_says(monkeypatch: pytest.MonkeyPatch) -> None:
    site = load_site("chtc", Path())
    monkeypatch.setenv("STAGING", "/staging/groups/lab")
    assert site.staging_path(Path("/home"), "bbadger") == Path("/staging/b/bbadger")
    assert site.staging_path(Path("/home")) == Path("/staging/groups/lab")
    assert load_site("local", Path()).staging_path(Path("/home/x")) == Path("/home/x/staging")


def test_users_own_site_is_named_by_its_path_relative_to_run_toml(tmp_path: Path, chtc_text: str) -> None:
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "mine.toml").write_text(chtc_text.replace("43_200", "3_600"), encoding="utf-8")
    assert load_site("sites/mine.toml", tmp_path).classes["short"].limit_s == 3600


def test_twin_differs_in_paths_and_limits_only(tmp_path: Path, chtc_text: str) -> None:
    # Given a twin of the site: another staging directory, and classes of seconds,
    text = chtc_text.replace('"/staging/{initial}/{user}"', '"/tmp/twin/{user}"').replace("43_200", "43")
    (tmp_path / "twin.toml").write_text(text, encoding="utf-8")
    site, twin = load_site("chtc", Path()), load_site("twin.toml", tmp_path)
    # when the same run is described at both, then every line of every submit file is the same.
    from dagman.spec import load_spec
    from dagman.submit import Places, helper, segment

    spec = load_spec(GOLDEN / "chtc" / "run.toml")
    places = Places(Path("/home/bbadger/run"))
    assert segment(spec, site, places) == segment(spec, twin, places)
    for node in ("stage", "consolidate", "norm_stats"):
        assert helper(spec, site, places, node) == helper(spec, twin, places, node)


def test_unknown_site_lists_those_there_are() -> None:
    with pytest.raises(
        BadInput, match=r"site: no site named 'osg'; there are chtc, local, or give the path of a site file"
    ):
        load_site("osg", Path())


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ('default_class = "short"', 'default_class = "tiny"', "'tiny' is not one of short, medium, long"),
        ("retries = 2", "retries = 5", "retries: must be at most 2"),
        ("limit_s = 43_200", "limit_s = inf", "classes.short.limit_s: must be a finite number"),
        ("[classes.short]", "[classes.'a b']", "classes.a b"),
        ("{initial}/{user}", "{initial}/{netid}", "may hold {user} and {initial} and {directory} and no other braces"),
        ("osdf:///chtc{path}", "osdf:///chtc{name}", "staging.transfers[1].url: may hold {path}"),
        ('python = "python3"', 'python = "{that}/bin"', "python: may hold {this}"),
        ("segment = ['+WantGPULab = true'", "segment = ['queue'", "submit.segment[0]: must be of the form"),
        ("segment = ['+WantGPULab = true'", 'segment = ["+A = 1\\nqueue 2"', "submit.segment[0]: must be of the form"),
        ("segment = ['+WantGPULab = true'", "segment = ['+A = 1 \\'", "submit.segment[0]: must be of the form"),
        ('segment_why = ["CHTC', 'segment_why = ["a\\nqueue 2', "submit.segment_why[0]: must be of the form"),
        ('requirement = "(', 'requirement = "a\\nqueue 2(', "staging.requirement: must be of the form"),
        ("[margin]\n", "[margin]\nfaction = 1\n", "margin.faction: unknown key"),
    ],
)
def test_site_file_that_is_wrong_is_told_with_its_key(
    tmp_path: Path, chtc_text: str, old: str, new: str, said: str
) -> None:
    assert old in chtc_text
    (tmp_path / "mine.toml").write_text(chtc_text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(BadInput) as caught:
        load_site("mine.toml", tmp_path)
    assert said in str(caught.value) and str(tmp_path / "mine.toml") in str(caught.value)
