"""What a visitor does while something else of theirs is going on."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import gradio as gr
import pytest
from PIL import Image
from tiny_checkpoint import tiny_views

from studio.events import CamerasFound, Note
from studio.pages.controls import SettingControls
from studio.pages.follow import FollowedJob, until_idle
from studio.pages.photos import Photos
from studio.pages.reconstruct import ReconstructPage
from studio.pages.sessions import Sessions
from studio.presets import PRESETS, apply_preset, preset_keys
from studio.settings import leaves, make_settings
from trellis.pipelines import image_preparation


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    names = [tmp_path / f"{number}.png" for number in range(3)]
    for name, view in zip(names, tiny_views(3), strict=True):
        view.save(name)
    return names


def test_what_a_job_may_be_reading_goes_only_after_it(files):
    sessions = Sessions()
    session = sessions.attach("page", None)
    session.photos.add(files)
    views = session.photos.views()
    key, folder = sessions.new_run(session)
    folder.mkdir()
    ending = threading.Event()
    work = session.works["reconstruct"] = FollowedJob(_until(ending), threading.Event())
    session.photos.clear()
    sessions.drop_run(session, key)
    sessions.tidy()
    assert len(session.photos) == 0 and sessions.shelf.find(key) is None
    assert all(view.open().size for view in views) and folder.exists()
    ending.set()
    assert work.wait(10)
    sessions.tidy()
    assert not folder.exists() and not list(session.photos.folder.iterdir())


def test_photos_stay_while_a_job_is_being_handed_in(files):
    session = Sessions().attach("page", None)
    session.photos.add(files)
    (view, *_) = session.photos.views()
    with session.lock:
        session.photos.clear()
        assert view.open().size
    session.tidy()
    assert not view.source.exists()


def test_a_photo_removed_while_it_is_looked_at_is_no_failure(files, monkeypatch):
    photos = Photos(files[0].parent / "photos")
    photos.add(files)
    cut_out = image_preparation.cut_out

    def slow(image):
        photos.remove(next(iter(photos)).id)
        return cut_out(image)

    monkeypatch.setattr(image_preparation, "cut_out", slow)
    assert len(list(photos.look())) == 3 and len(photos) == 0
    assert list(photos.folder.iterdir()) == []


def test_a_mask_painted_while_the_photo_is_looked_at_is_looked_at(files, monkeypatch):
    photos = Photos(files[0].parent / "photos")
    photos.add(files[:1])
    (photo,) = photos
    masks = []

    def cut_out(image):
        if not masks:  # the first look: the brush is quicker
            masks.append("painted")
            photos.set_mask(photo.id, _png())
        return image

    monkeypatch.setattr(image_preparation, "cut_out", cut_out)
    assert len(list(photos.look())) == 2 and photo.looked_at and photo.mask is not None


def test_two_sets_of_photos_that_come_at_once_do_not_mix(files):
    photos = Photos(files[0].parent / "photos")
    both = [threading.Thread(target=photos.replace, args=(chosen * 8,)) for chosen in (files[:1], files[1:2])]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert len(photos) == 8 and len({photo.name for photo in photos}) == 1


def test_what_came_out_is_shown_once_on_each_page():
    work = FollowedJob(iter([CamerasFound("job", (), {}, 0.0)]), threading.Event())
    assert [work.first_on(page) for page in ("a", "b", "a", "b")] == [True, True, False, False]


def test_a_page_does_not_rest_while_a_job_runs_that_began_as_it_settled():
    """Another tab's; both are told of, in one call."""
    ending = threading.Event()
    works = [FollowedJob(iter([Note("one")]), threading.Event())]
    assert works[0].wait(10)
    shown = []

    def settle() -> str:
        if len(works) == 1:
            works.append(FollowedJob(_until(ending), threading.Event()))
        return f"settled {works[-1].ended}"

    async def look() -> None:
        async for what in until_idle(lambda: works[-1], lambda work: "running", settle):
            shown.append(what)
            ending.set()

    # On a thread of its own: the browser tests' driver leaves an event loop running in this one.
    with ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, look()).result(60)
    assert shown[0] == "settled False" and shown[-1] == "settled True" and "running" in shown


def test_the_end_of_a_job_leaves_the_photos_on_the_page_alone(files):
    """Its answer may come after that of photos which were added meanwhile."""
    session = Sessions().attach("page", None)
    session.photos.add(files)
    with gr.Blocks():
        page = ReconstructPage(SimpleNamespace(defaults=make_settings({})), Sessions())
    assert page.photos.strip not in page.open_outputs
    for new in (False, True):
        updates = page.open_updates(session, new)
        assert len(updates) == len(page.open_outputs)
        assert not any('class="strip"' in update for update in updates if isinstance(update, str))


def test_a_preset_leaves_alone_what_it_does_not_decide():
    defaults = make_settings({})
    with gr.Blocks():
        controls = SettingControls(defaults)
        controls.add(*(setting.key for setting in leaves()))
    assert all(component in controls.components for component in controls.of(*preset_keys()))
    for name in PRESETS:
        chosen = apply_preset(name, defaults)
        differing = {setting.key for setting in leaves() if setting.of(chosen) != setting.of(defaults)}
        assert differing <= set(preset_keys()) and "seed" not in preset_keys()


def _png() -> str:
    stream = io.BytesIO()
    Image.new("L", (32, 32), 255).save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _until(ending: threading.Event):
    yield Note("begun")
    ending.wait(10)
