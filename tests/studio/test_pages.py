"""What the page does that needs no browser."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
import threading
from collections.abc import Iterator

import pytest
from PIL import Image
from tiny_checkpoint import tiny_views

from studio.events import Note, Progress
from studio.pages import camera_edits, fragments, refine_view, sheet
from studio.pages.examples import find_examples
from studio.pages.files import Shelf
from studio.pages.follow import FollowedJob
from studio.pages.hosting import Hosting, hosting
from studio.pages.photos import Photos
from studio.pages.refine import job_of_uploads
from studio.pages.sessions import MAX_RUNS, Sessions
from studio.refine_settings import RefineSettings
from studio.settings import leaves
from studio.stages import STAGES
from trellis.errors import InputError


def test_examples_are_folders_of_pictures(tmp_path):
    assert find_examples(tmp_path / "absent") == []
    for name in ("red-chair", "toy_car", "a", "b", "c"):
        (tmp_path / name).mkdir()
    for name in ("red-chair", "toy_car"):
        for number, view in enumerate(tiny_views(2)):
            view.save(tmp_path / name / f"{number}.png")
    found = find_examples(tmp_path)
    assert [title for title, _ in found] == ["Red chair", "Toy car"]
    assert [len(files) for _, files in found] == [2, 2]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_visitor_is_found_again_by_the_secret_key_alone():
    sessions = Sessions()
    session = sessions.attach("first load", None)
    sessions.detach("first load")
    assert sessions.attach("second load", session.key) is session is sessions.of("second load")
    for guess in ("", "x", session.key[:-1], session.folder.name, None):
        assert sessions.attach("somebody else", guess) is not session


def test_who_leaves_loses_first_the_job_and_then_the_files():
    clock = Clock()
    sessions = Sessions(keep=100, grace=10, clock=clock)
    session = sessions.attach("page", None)
    going = threading.Event()
    session.works["reconstruct"] = FollowedJob(_until(going), threading.Event())
    key, folder = sessions.new_run(session)
    folder.mkdir()
    (folder / "run.json").write_text("{}")
    clock.now = 500.0
    sessions.tidy()
    assert not session.works["reconstruct"].cancelled.is_set()  # the page is open
    sessions.detach("page")
    clock.now += 9
    sessions.tidy()
    assert not session.works["reconstruct"].cancelled.is_set()
    clock.now += 2
    sessions.tidy()
    assert session.works["reconstruct"].cancelled.is_set() and sessions.shelf.file(key, "run.json")
    going.set()
    assert session.works["reconstruct"].wait(10)
    clock.now += 100
    sessions.tidy()
    assert not session.folder.exists() and sessions.shelf.file(key, "run.json") is None


def test_a_page_out_of_reach_keeps_its_session_for_as_long_as_it_is_heard_of():
    clock = Clock()
    sessions = Sessions(keep=100, grace=10, clock=clock)
    session = sessions.attach("page", None)
    sessions.detach("page")  # the connection broke, and nothing will say so a second time
    for clock.now in (90.0, 180.0, 270.0):
        assert sessions.touch(session.key)
        sessions.tidy()
    assert sessions.of("page") is session
    clock.now += 101
    sessions.tidy()
    assert not session.folder.exists() and not sessions.touch(session.key)

    again = sessions.of("page")  # a click comes before the page has noticed
    assert again is not session
    clock.now += 101
    sessions.tidy()
    assert not again.folder.exists()  # even if the page is never heard of again


def test_a_program_that_calls_is_there_during_its_calls_only():
    clock = Clock()
    sessions = Sessions(keep=100, grace=10, clock=clock)
    with sessions.guest("program") as session:
        clock.now = 1000.0
        sessions.tidy()
        assert session.folder.exists()
    with sessions.guest("program") as again:
        assert again is session
    with sessions.guest("another") as other:
        assert other is not session
    clock.now += 101
    sessions.tidy()
    assert not session.folder.exists()


def _until(going: threading.Event) -> Iterator[Note]:
    yield Note("begun")
    going.wait(10)


def test_a_job_is_followed_though_nobody_looks():
    work = FollowedJob(iter([Progress("structure", 1, 2, "Shaping", 1.0, preview=b"jpeg"), Note("so")]),
                       threading.Event())  # fmt: skip
    assert work.wait(10) and work.error is None
    assert work.previews == {"structure": b"jpeg"} and work.notes == ["so"] and work.progress.step == 1


def test_the_oldest_runs_go_but_never_the_one_on_the_page():
    sessions = Sessions()
    session = sessions.attach("page", None)
    first, _ = sessions.new_run(session)
    session.shown = first
    for _ in range(MAX_RUNS + 3):
        sessions.new_run(session)
    assert len(session.runs) == MAX_RUNS and first in session.runs


@pytest.mark.parametrize(
    "path",
    ["../secret.json", "/etc/passwd", "..%2fsecret.json", "views/../../secret.json", ".hidden.json", "a\0.json", "",
     "link.json", "views", "page.svg"],
)  # fmt: skip
def test_a_shelf_hands_out_nothing_from_outside_its_folders(tmp_path, path):
    folder = tmp_path / "run"
    (folder / "views").mkdir(parents=True)
    for name in ("secret.json", "run/.hidden.json", "run/page.svg", "run/run.json"):
        (tmp_path / name).write_text("{}")
    (folder / "link.json").symlink_to(tmp_path / "secret.json")
    shelf = Shelf()
    key = shelf.put(folder)
    assert shelf.file(key, "run.json") == folder / "run.json"
    assert shelf.file(key, path) is None and shelf.file(key[:-1], "run.json") is None
    shelf.remove(key)
    assert shelf.file(key, "run.json") is None


def test_photos_keep_names_of_their_own_and_say_what_is_wrong(tmp_path):
    photos = Photos(tmp_path / "photos")
    names = ["a b.png", "\U0001f600.png", "x" * 200 + ".png", "a b.png"]
    files = []
    for number, (name, view) in enumerate(zip(names, tiny_views(4), strict=True)):
        (tmp_path / str(number)).mkdir()
        files.append(tmp_path / str(number) / name)
        view.save(files[-1])
    (tmp_path / "not.png").write_text("no picture")
    sentences = photos.add([*files, tmp_path / "not.png"])
    assert len(sentences) == 1 and "'not.png'" in sentences[0]
    assert [photo.name for photo in photos] == names
    assert all(len(photo.file.name) < 20 for photo in photos)
    assert [photo.looked_at for photo in photos.look()] == [True] * 4
    first = next(iter(photos))
    photos.move(first.id, 99)
    assert photos.index(first.id) == 3
    photos.remove(first.id)
    assert photos.index(first.id) is None and not (photos.folder / first.id).exists()
    assert photos.add(files * 9)[-1].startswith("At most 32") and len(photos) == 32


def test_a_mask_is_taken_only_if_it_is_one(tmp_path):
    photos = Photos(tmp_path / "photos")
    view = tiny_views(1)[0]
    view.save(tmp_path / "a.png")
    photos.add([tmp_path / "a.png"])
    (photo,) = photos
    for bad in (None, "", "data:image/png;base64,!!", "data:text/html;base64,AAAA", _png((0, 0)), "x" * 5_000_000):
        with pytest.raises(InputError):
            photos.set_mask(photo.id, bad)
    photos.set_mask(photo.id, _png((255, 255)))
    list(photos.look())
    assert photo.view.open().getchannel("A").getextrema() == (255, 255)
    with pytest.raises(InputError, match="not there any more"):
        photos.set_mask("nobody", _png((255, 255)))


def _png(values: tuple[int, int]) -> str:
    mask = Image.new("L", (32, 32), values[0])
    stream = io.BytesIO()
    mask.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def test_cameras_set_by_hand_are_taken_only_if_they_are_some_and_stand_around_the_front(tmp_path):
    pose = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 2], [0, 0, 0, 1]]
    frame = {"w": 1, "h": 1, "fl_x": 1.2, "transform_matrix": pose}
    for bad in (None, 3, "", "{", "[null]", "[" * 100_000, f"[{'null, ' * 50_000}null]", "{}", "[0, null]", "[{}, 1]"):
        with pytest.raises(InputError):
            camera_edits.cameras_of_act({"frames": bad}, ["a", "b"])
    cameras = camera_edits.cameras_of_act({"frames": json.dumps([None, frame])}, ["a", "b"])
    assert cameras[0] is None and cameras[1].lens == (1.2, 1.2, 0.5, 0.5)

    session = Sessions().attach("page", None)
    for number, view in enumerate(tiny_views(2)):
        view.save(tmp_path / f"{number}.png")
        session.photos.add([tmp_path / f"{number}.png"])
    ids = [photo.id for photo in session.photos]
    camera_edits.keep(session, ids, cameras)
    assert [view.camera for view in camera_edits.views_of(session)] == cameras
    session.photos.move(ids[1], 0)
    with pytest.raises(InputError, match="Another photo has become the front"):
        camera_edits.views_of(session)
    camera_edits.forget_for_another_front(session)
    assert [view.camera for view in camera_edits.views_of(session)] == [None, None]


def test_an_edit_that_arrives_after_a_later_one_changes_nothing():
    session = Sessions().attach("page", None)

    def heard(**when):
        return camera_edits.newest_of_act(session, {"frames": "[null]", **when}, ["a"])

    assert heard(at="2000") == heard(at="2000") == [None]
    assert heard(at="1999") is None
    for bad in ({"at": "nan"}, {"at": "inf"}, {"at": "soon"}, {"at": None}, {"at": [1]}, {}):
        with pytest.raises(InputError, match="did not arrive whole"):
            heard(**bad)
    assert heard(at="2001") == [None]


def test_the_environment_decides_how_the_studio_is_hosted():
    assert hosting({}) == Hosting()
    found = hosting({"RECONSTUDIO_LOGIN": "ann:x, bob:y:z", "RECONSTUDIO_QUEUE": "3", "RECONSTUDIO_KEEP": "60"})
    assert hosting({"RECONSTUDIO_ZERO_GPU": "300"}).gpu_seconds == 300
    assert found.logins == (("ann", "x"), ("bob", "y:z")) and found.queue == 3 and found.keep == 60
    for name, value in (("LOGIN", "ann"), ("QUEUE", "many"), ("QUEUE", "0"), ("UPLOAD_MB", "nan")):
        with pytest.raises(InputError, match=f"RECONSTUDIO_{name}"):
            hosting({f"RECONSTUDIO_{name}": value})


def test_progress_names_the_stage_the_step_and_the_time():
    html = fragments.running(Progress("structure", 3, 30, "Working out the rough shape", 75.4))
    assert "Working out the rough shape" in html and "3 of 30" in html and "1:15" in html
    assert html.count('class="past"') == [stage.name for stage in STAGES].index("structure")
    assert html.count('aria-current="step"') == 1


def test_messages_cannot_smuggle_in_html():
    assert "<script>" not in fragments.stopped("That did not work", ["'<script>.png' is empty."])


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(3600, "an hour"), (5400, "2 hours"), (86_400, "a day"), (1800, "30 minutes"), (1, "a second"), (0.2, "a second")],
)
def test_times_are_told_in_words(seconds, words):
    assert fragments.span(seconds) == words


def test_a_comparison_is_handed_on_as_one_file_and_as_figures(tmp_path):
    steps = next(setting for setting in leaves() if setting.key == "structure_steps")
    axes = [sheet.Axis(steps, ("5", "30"))]
    (tmp_path / "turntable.mp4").write_bytes(b"a film")
    cards = [
        sheet.Card(("5",), tmp_path / "turntable.mp4", 20.1, 61.0, 9000, 2**20, bargain=True, key="secret"),
        sheet.Card(("30",), tmp_path / "turntable.mp4", 20.5, 122.0, 9000, 2**20),
    ]
    html = sheet.page("<Burger>", axes, cards)
    assert html.count("data:video/mp4;base64,YSBmaWxt") == 2 and "&lt;Burger&gt;" in html
    assert "secret" not in html and not re.search(r"""(?:src|href)=["'](?!data:)""", html)
    assert "within 0.4 dB of the best and takes 50% of its time" in html
    rows = list(csv.reader(io.StringIO(sheet.table(axes, cards))))
    assert rows == [
        ["structure_steps", "psnr_db", "seconds", "triangles", "glb_bytes", "bargain"],
        ["5", "20.1", "61.0", "9000", "1048576", "1"],
        ["30", "20.5", "122.0", "9000", "1048576", "0"],
    ]


def test_a_curve_is_drawn_over_its_own_range():
    points = [(step, 1.0 / step) for step in range(1, 2001)]
    svg = refine_view.curve(points, 2000)
    assert svg.count(",") < 400 and "0.0005" in svg
    assert refine_view.curve([(5, 2.0)], 10, dots=True).count("<circle") >= 1
    svg = refine_view.curve([(1, 9.9), (2, 10.0)], 2, 1.0, dots=True)
    heights = [float(y) for y in re.findall(r'cy="([\d.]+)"', svg)]
    assert max(heights) - min(heights) < 20  # a tenth of a decibel is no cliff


def test_files_handed_in_for_a_refinement_need_names_of_their_own(tmp_path):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        tiny_views(1)[0].save(tmp_path / folder / "view.png")
    given = tmp_path / "given"
    given.mkdir()
    with pytest.raises(InputError, match="Two files are called 'view.png'"):
        job_of_uploads(given, "model.glb", [str(tmp_path / f / "view.png") for f in "ab"], (), RefineSettings(),
                       tmp_path / "out", "user")  # fmt: skip


def test_an_upload_that_the_server_has_removed_is_asked_for_again(tmp_path):
    (tmp_path / "chair.glb").write_bytes(b"")
    given, gone = tmp_path / "given", str(tmp_path / "front.png")
    given.mkdir()
    with pytest.raises(InputError, match=r"'front.png' was added too long ago"):
        job_of_uploads(given, str(tmp_path / "chair.glb"), [gone], (), RefineSettings(), tmp_path / "out", "somebody")
