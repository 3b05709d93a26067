from __future__ import annotations

import pytest
from odd_files import BAD, GOOD, fully_transparent, photo, text, transparent_png
from PIL import Image

from studio.inputs import BadViewsError, as_views, check_views
from studio.stages import prepare
from trellis.errors import InputError

MISSING = {"missing.png": (lambda path: None, "is not a file")}


@pytest.mark.parametrize("name", BAD | MISSING)
def test_a_bad_file_costs_one_sentence_with_its_name(name, tmp_path):
    write, why = (BAD | MISSING)[name]
    write(tmp_path / name)
    with pytest.raises(BadViewsError) as caught:
        check_views(as_views([tmp_path / name]))
    sentences = caught.value.sentences
    assert len(sentences) == 1
    assert sentences[0].startswith(f"'{name}'") and why in sentences[0] and sentences[0].endswith(".")


@pytest.mark.parametrize("name", GOOD)
def test_unusual_files_that_are_fine(name, tmp_path, engine):
    write, size = GOOD[name]
    write(tmp_path / name)
    views = as_views([tmp_path / name])
    image = views[0].open()
    assert image.mode in ("RGB", "RGBA") and image.size == size
    prepared = prepare(views, engine.pipeline, lambda *_: None)
    assert prepared[0].image.mode == "RGBA"
    assert prepared[0].image.size == (engine.pipeline.image_resolution,) * 2
    assert prepared[0].cut_out_by == ("alpha" if image.mode == "RGBA" else "grabcut")


def test_no_view():
    for nothing in ([], None, ()):
        with pytest.raises(InputError, match="no views yet: add 1 to 32 photos"):
            as_views(nothing)


def test_one_view_is_enough(tmp_path):
    transparent_png(tmp_path / "only.png")
    assert [view.name for view in as_views(tmp_path / "only.png")] == ["only.png"]


def test_thirty_two_views_and_no_more():
    image = photo()
    assert len(as_views([image] * 32)) == 32
    with pytest.raises(InputError, match="33 views came, but at most 32"):
        as_views([image] * 33)


def test_a_folder_gives_its_images_in_the_order_of_their_numbers(tmp_path):
    for number in (10, 2, 1):
        photo().save(tmp_path / f"view{number}.png")
    (tmp_path / "notes.txt").write_text("not a view")
    (tmp_path / ".hidden.png").write_text("not a view either")
    assert [view.name for view in as_views([tmp_path])] == ["view1.png", "view2.png", "view10.png"]


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "bare").mkdir()
    with pytest.raises(InputError, match="'bare' holds no images"):
        as_views([tmp_path / "bare"])
    with pytest.raises(InputError, match="'bare' is a folder; give either"):
        as_views([tmp_path / "bare", tmp_path / "x.png"])


def test_all_bad_views_are_told_at_once(tmp_path, engine):
    text(tmp_path / "text.png")
    fully_transparent(tmp_path / "glass.png")
    Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / "wall.png")  # all background
    transparent_png(tmp_path / "good.png")
    views = as_views([tmp_path / name for name in ("text.png", "good.png", "glass.png", "wall.png")])
    with pytest.raises(BadViewsError) as caught:
        prepare(views, engine.pipeline, lambda *_: None)
    assert [sentence.split("'")[1] for sentence in caught.value.sentences] == ["text.png", "glass.png", "wall.png"]
    assert "No object stands out" in caught.value.sentences[2]
