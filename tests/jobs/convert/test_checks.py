"""Every check has its sentence, and nothing is judged by lerobot: these run in the suite's own Python."""

from __future__ import annotations

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from agent.errors import BadInput, SegueError
from jobs.convert import conversion, episode_job, package
from jobs.convert.inspection import Inspection, good_ones, inspect, judge
from jobs.convert.options import ConvertOptions, checked, load
from jobs.convert.reader import reader_of, recognise
from jobs.convert.workers import Workers
from tests.jobs.convert import sources


def options(source: Path, **more: Any) -> ConvertOptions:
    given: dict[str, Any] = {"fps": 10, "downsample": 2, "default_task": "pick it up", **more}
    return ConvertOptions(source=str(source), repo_id="local/x", out=str(source.parent / "out"), **given)


def inspections(source: Path, **more: Any) -> list[Inspection]:
    asked = options(source, **more)
    layout = recognise(source, asked.layout)
    return judge([inspect(ref, layout, asked) for ref in reader_of(layout).episodes(source)])


def damage(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    """Episode 1 of a lab source with its arrays changed."""

    def apply(source: Path) -> None:
        arrays = sources.lab_arrays(1, 8)
        change(arrays)
        sources.write_lab(source, 1, arrays)

    return apply


def put(name: str, where: Any, value: Any) -> Callable[[Path], None]:
    return damage(lambda arrays: arrays[name].__setitem__(where, value))


def replace(name: str, make: Callable[[Any], Any]) -> Callable[[Path], None]:
    return damage(lambda arrays: arrays.__setitem__(name, make(arrays[name])))


BAD = {
    "a value that is not a number": (
        put("robot_current_pose", (3, 2), np.nan),
        "'state' holds nan at frame 3, column 2",
    ),
    "an infinite gripper": (put("gripper_commanded_position", 5, np.inf), "'actions' holds inf at frame 5, column 7"),
    "a shorter array": (
        replace("gripper_actual_position", lambda found: found[:-1]),
        "is ragged: 'gripper_actual_position' has 7 entries where the others have 8",
    ),
    "missing images": (
        replace("mount_image_rgb_compressed", lambda found: found[:-2]),
        "is ragged: 'mount_image' has 6 entries where the others have 8",
    ),
    "a shorter list of labels": (replace("state", lambda found: found[:-1]), "is ragged: 'state' has 7 entries"),
    "poses without rotation": (
        replace("robot_desired_pose", lambda found: found[:, :3]),
        "'robot_desired_pose' has shape (8, 3)",
    ),
    "a missing data set": (
        damage(lambda arrays: arrays.pop("robot_desired_pose")),
        "lacks the data set 'robot_desired_pose'",
    ),
    "time running backwards": (put("timestamps", 4, 0.0), "time stamps do not increase at frame 4"),
    "a time stamp that is not finite": (put("timestamps", 2, np.nan), "the time stamp of frame 2 is not finite"),
    "an interruption": (
        replace("timestamps", lambda found: found + 3.0 * (np.arange(8) > 5)),
        "is interrupted for 3.05 s after frame 5",
    ),
    "another rate": (
        replace("timestamps", lambda found: found[0] + np.arange(8) / 40.0),
        "was recorded at 40.0 frames/s, but --fps 10 × --downsample 2 is 20; use --downsample 4",
    ),
    "a rate that fps does not divide": (
        replace("timestamps", lambda found: found[0] + np.arange(8) / 26.0),
        "10 does not divide it, use --fps 13 with --downsample 2",
    ),
    "a rate that fps divides only without leaving out": (
        replace("timestamps", lambda found: found[0] + np.arange(8) / 15.0),
        "10 does not divide it, use --fps 15 with --downsample 1",
    ),
    "time stamps in milliseconds": (
        replace("timestamps", lambda found: found * 1000.0),
        "is 20; are its time stamps in seconds?",
    ),
    "half a JPEG": (
        replace("mount_image_rgb_compressed", lambda found: [*found[:4], found[4][:200], *found[5:]]),
        "camera 'mount_image', frame 4: an image of 200 bytes cannot be decoded",
    ),
    "no JPEG": (
        replace("gripper_image_rgb_compressed", lambda found: [np.zeros(0, np.uint8), *found[1:]]),
        "camera 'gripper_image', frame 0: an image of 0 bytes cannot be decoded",
    ),
    "another size within": (
        replace(
            "mount_image_rgb_compressed", lambda found: [*found[:6], *[sources.jpeg(sources.picture(1, 24, 32))] * 2]
        ),
        "camera 'mount_image' changes from 64×48 pixels to 32×24 pixels at frame 6",
    ),
    "another size in one episode": (
        replace("mount_image_rgb_compressed", lambda found: [sources.jpeg(sources.picture(1, 24, 32))] * 8),
        "camera 'mount_image' has images of 32×24 pixels, in ep000000 they are 64×48 pixels",
    ),
    "no frames": (
        damage(lambda arrays: arrays.update({name: found[:0] for name, found in arrays.items()})),
        "has no frames",
    ),
    "a broken file": (
        lambda source: (source / "ep000001/episode.h5").write_bytes(b"no HDF5"),
        "cannot be read as HDF5",
    ),
    "a missing file": (lambda source: (source / "ep000001/episode.h5").unlink(), "has no file episode.h5"),
}


@pytest.mark.parametrize("what", BAD)
def test_bad_episode_of_the_lab_is_named_with_what_is_wrong(what: str, tmp_path: Path) -> None:
    source = sources.lab(tmp_path / "lab")
    change, sentence = BAD[what]
    change(source)

    found = inspections(source)

    assert [each.problem is None for each in found] == [True, False, True]
    assert sentence in str(found[1].problem)


def test_bad_episodes_end_it_unless_they_may_be_skipped(tmp_path: Path) -> None:
    source = sources.lab(tmp_path / "lab")
    put("robot_current_pose", (0, 0), np.nan)(source)
    found = inspections(source)

    with pytest.raises(
        BadInput, match=r"1 of 3 episodes cannot be converted: ep000001 'state' holds nan .* --skip-bad"
    ):
        good_ones(found, skip_bad=False)
    assert [each.ref.name for each in good_ones(found, skip_bad=True)] == ["ep000000", "ep000002"]


def test_nothing_left_is_an_error_even_when_bad_ones_may_be_skipped(tmp_path: Path) -> None:
    source = sources.lab(tmp_path / "lab", episodes=2)

    with pytest.raises(BadInput, match="no episode is left"):
        good_ones(inspections(source, fps=7), skip_bad=True)


def test_episode_without_instruction_asks_for_one(tmp_path: Path) -> None:
    source = sources.lab(tmp_path / "lab", episodes=1)

    for given in (None, " "):
        found = inspections(source, default_task=given)
        assert found[0].problem == "has no task of its own; give one with --default-task"


def test_other_joints_in_one_aloha_episode_are_named(tmp_path: Path) -> None:
    import h5py

    source = sources.aloha(tmp_path / "aloha", episodes=11)
    with h5py.File(source / "episode_10.hdf5", "a") as file:
        del file["action"]
        file["action"] = np.zeros((6, 7))

    found = inspections(source)

    assert [each.ref.name for each in found][-2:] == ["episode_9", "episode_10"]
    assert found[-1].problem == "'action' has 7 columns, in episode_0 it has 14"
    assert [each.problem for each in found[:-1]] == [None] * 10


def test_missing_camera_in_one_aloha_episode_is_named(tmp_path: Path) -> None:
    import h5py

    source = sources.aloha(tmp_path / "aloha")
    with h5py.File(source / "episode_1.hdf5", "a") as file:
        del file["observations/images/cam_low"]

    assert inspections(source)[1].problem == "lacks 'observation.images.cam_low', which episode_0 has"


def test_npz_without_actions_and_a_broken_one_are_named(tmp_path: Path) -> None:
    source = sources.npz(tmp_path / "npz")
    np.savez(source / "run05.npz", state=np.zeros((3, 4)))
    (source / "run06.npz").write_bytes(b"PK no archive")

    found = inspections(source)

    assert "has no array 'actions' or 'action'" in str(found[2].problem)
    assert "run06.npz cannot be read as .npz" in str(found[3].problem)


def test_npz_with_several_episodes_is_told_apart_by_its_numbers(tmp_path: Path) -> None:
    numbers = np.repeat([4, 7], [6, 3])
    np.savez(tmp_path / "all.npz", state=np.arange(9.0), actions=np.arange(18.0).reshape(9, 2), episode=numbers)

    found = inspections(tmp_path / "all.npz", downsample=1)

    assert [(each.ref.name, each.frames, each.problem) for each in found] == [("all[4]", 6, None), ("all[7]", 3, None)]


def test_instruction_of_an_npz_may_stand_in_every_row(tmp_path: Path) -> None:
    numbers, tasks = np.repeat([4, 7], [6, 3]), np.repeat(["to red", "to blue"], [6, 3])
    arrays = {"state": np.arange(9.0), "actions": np.arange(9.0), "episode": numbers}

    def found(task: object) -> list[tuple[str, str | None]]:
        np.savez(tmp_path / "all.npz", task=task, **arrays)
        return [(each.task, each.problem) for each in inspections(tmp_path / "all.npz", downsample=1)]

    assert found(tasks) == [("to red", None), ("to blue", None)]
    assert found(np.array("to both")) == found(np.array(["to both"])) == [("to both", None)] * 2
    assert "'task' changes within the episode" in str(found(np.roll(tasks, 1))[0][1])
    assert "'task' has 2 rows where 'episode' has 9" in str(found(np.array(["to red", "to blue"]))[0][1])
    np.savez(tmp_path / "all.npz", state=np.arange(9.0), actions=np.arange(9.0), task=tasks[:6])
    assert "'task' has 6 entries where the others have 9" in str(inspections(tmp_path / "all.npz")[0].problem)


def test_npz_whose_episodes_are_mixed_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "all.npz", state=np.zeros(3), actions=np.zeros(3), episode=np.array([0, 1, 0]))

    with pytest.raises(BadInput, match="do not lie together"):
        inspections(tmp_path / "all.npz")


def test_zarr_whose_ends_lie_behind_its_data_names_the_episode(tmp_path: Path) -> None:
    import zarr

    source = sources.zarr_buffer(tmp_path / "buffer.zarr")
    zarr.open_group(str(source), mode="a")["meta/episode_ends"][1] = 40

    assert "ends at row 40, but data/action has 12 rows" in str(inspections(source)[1].problem)


def test_zarr_whose_ends_do_not_increase_is_refused(tmp_path: Path) -> None:
    source = sources.zarr_buffer(tmp_path / "buffer.zarr", lengths=(5, 0))

    with pytest.raises(BadInput, match="does not increase"):
        inspections(source)


def test_zarr_whose_content_changes_is_another_source(tmp_path: Path) -> None:
    import zarr

    source = sources.zarr_buffer(tmp_path / "buffer.zarr")

    def signatures() -> list[list[Any]]:
        return [episode_job.signature(ref) for ref in reader_of("zarr").episodes(source)]

    before = signatures()
    assert signatures() == before
    zarr.open_group(str(source), mode="a")["data/action"][0] = 5.0

    assert all(mine != theirs for mine, theirs in zip(signatures(), before, strict=True))


def test_zarr_with_images_of_0_to_1_would_be_black(tmp_path: Path) -> None:
    import zarr

    source = sources.zarr_buffer(tmp_path / "buffer.zarr")
    assert [each.problem for each in inspections(source)] == [None, None]
    images = zarr.open_group(str(source), mode="a")["data/img"]
    images[:5] = images[:5] / 255

    found = inspections(source)

    assert "camera data/img holds values of 0 to 1, where 0 to 255 are needed" in str(found[0].problem)
    assert found[1].problem is None


def test_names_that_a_dataset_cannot_have_are_refused_and_can_be_changed(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", state=np.zeros((3, 1)), action=np.zeros((3, 1)), index=np.arange(3))

    assert "--rename index=NEW" in str(inspections(tmp_path)[0].problem)
    assert dict(inspections(tmp_path, rename=(("index", "row"),))[0].vectors) == {"action": 1, "row": 1, "state": 1}


def test_rename_of_a_feature_that_is_not_there_is_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "one.npz", state=np.zeros((3, 1)), action=np.zeros((3, 1)))

    assert "has no feature 'acton', which --rename names (has: action, state)" in str(
        inspections(tmp_path, rename=(("acton", "actions"),))[0].problem
    )


def test_directory_of_no_known_layout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no known layout"):
        recognise(tmp_path, "auto")
    with pytest.raises(BadInput, match="does not exist"):
        recognise(tmp_path / "none", "auto")


@pytest.mark.parametrize("layout", ["lab", "aloha", "npz"])
def test_named_layout_without_episodes_is_refused(layout: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no episodes"):
        reader_of(recognise(tmp_path, layout)).episodes(tmp_path)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        ({"fps": 0}, "--fps 0"),
        ({"downsample": -1}, "--downsample -1"),
        ({"image_size": (0, 224)}, "--image-size 0 224"),
        ({"workers": -2}, "--workers -2"),
        ({"format": "v1.0"}, "--format v1.0"),
        ({"rename": (("a", "b"), ("a", "c"))}, "--rename a=…: is given more than once"),
    ],
)
def test_options_that_cannot_be_are_named(more: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=sentence):
        checked(options(tmp_path / "source", **more))


def test_existing_dataset_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()

    with pytest.raises(BadInput, match="already exists"):
        checked(options(tmp_path / "source"))


def test_options_travel_as_json(tmp_path: Path) -> None:
    asked = options(tmp_path, image_size=(224, 224), rename=(("a", "b"),))

    assert load(asked.dump()) == asked


@pytest.mark.parametrize(
    ("installed", "wanted", "sentence"),
    [
        (None, None, r"the lerobot package is not in this Python .*pip install lerobot==0\.3\.3.*--python"),
        (None, "v3.0", r"pip install 'lerobot>=0\.4,<0\.5'"),
        ("0.3.3", "v3.0", r"--format v3\.0: the installed lerobot 0\.3\.3 writes v2\.1"),
        ("0.4.4", "v2.1", r"--format v2\.1: the installed lerobot 0\.4\.4 writes v3\.0; pip install lerobot==0\.3\.3"),
        ("0.1.0", None, r"lerobot 0\.1\.0 cannot write"),
    ],
)
def test_lerobot_that_does_not_fit_is_said(
    installed: str | None, wanted: str | None, sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(package, "installed_version", lambda: installed)

    with pytest.raises(SegueError, match=sentence):
        package.installed_format(wanted)


def test_source_may_not_hold_its_own_result(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "installed_version", lambda: "0.3.3")
    source = sources.npz(tmp_path / "npz")
    asked = ConvertOptions(source=str(source), repo_id="x", out=str(source / "dataset"))

    with pytest.raises(BadInput, match="lies inside the source"):
        conversion.convert(asked)
    assert not list(source.glob("dataset*"))


def test_server_of_the_workers_is_deaf_to_ctrl_c_from_its_beginning() -> None:
    with Workers(1, []):
        living = [each for each in psutil.Process().children() if each.status() != psutil.STATUS_ZOMBIE]
        servers = [each for each in living if "forkserver" in " ".join(each.cmdline())]
        assert servers
        for server in servers:
            status = Path(f"/proc/{server.pid}/status").read_text()
            blocked = next(line.split()[1] for line in status.splitlines() if line.startswith("SigBlk"))
            assert int(blocked, 16) >> (signal.SIGINT - 1) & 1
    assert signal.SIGINT not in signal.pthread_sigmask(signal.SIG_BLOCK, [])
