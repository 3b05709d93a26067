"""Files from strangers, through the page."""

from __future__ import annotations

from browser_steps import WAIT, add_photos, press, wait_for_photos
from odd_files import BAD, GOOD, transparent_png


def test_every_bad_file_gets_a_sentence_and_what_is_on_the_page_stays(page, photos, tmp_path):
    add_photos(page, photos[:1])
    files = []
    for name, (write, _) in BAD.items():
        files.append(str(tmp_path / name))
        write(tmp_path / name)
    files.append(str(tmp_path / "broken.mp4"))
    (tmp_path / "broken.mp4").write_bytes(b"\x00\x00\x00\x18ftypmp42 and nothing more")
    page.set_input_files("#photos input[type=file]", files)
    page.wait_for_function(f"document.querySelectorAll('#photo-alerts li').length === {len(files)}", timeout=WAIT)
    sentences = page.locator("#photo-alerts li").all_inner_texts()
    expected = [*((name, why) for name, (_, why) in BAD.items()), ("broken.mp4", "")]
    for (name, why), sentence in zip(expected, sentences, strict=True):
        assert sentence.startswith(f"'{name}'") and why in sentence and sentence.endswith(".")
    assert _names(page) == ["photo-0.png"]


def test_unusual_files_are_seen_as_a_person_sees_them(page, tmp_path):
    for name, (write, _) in GOOD.items():
        write(tmp_path / name)
    add_photos(page, [str(tmp_path / name) for name in GOOD])
    page.wait_for_function(
        "[...document.querySelectorAll('#strip img')].every((image) => image.naturalWidth > 0)", timeout=WAIT
    )
    seen = page.evaluate("[...document.querySelectorAll('#strip img')].map((i) => [i.naturalWidth, i.naturalHeight])")
    assert [tuple(size) for size in seen] == [size for _, size in GOOD.values()]


def test_odd_names_are_fine_and_the_33rd_photo_is_too_many(page, tmp_path):
    transparent_png(tmp_path / "plain.png")
    data = (tmp_path / "plain.png").read_bytes()
    names = ["../../x.png", "n" * 296 + ".png", "\U0001f600\U0001f40c.png", "same.png", "same.png", "<b>bold</b>.png"]
    _hand_in(page, names, data)
    wait_for_photos(page, len(names))
    shown = _names(page)
    assert shown[0] == "x.png" and shown[3] == shown[4] == "same.png" and "\U0001f600" in shown[2]
    assert all("/" not in name and "\\" not in name for name in shown)
    press(page, "#check-cameras")
    page.wait_for_selector("#cameras-view[data-state=ready]", timeout=WAIT)
    assert page.locator(".view-cards li").count() == len(names)
    assert page.locator("#strip b b, .view-cards b b").count() == 0  # nobody's name becomes markup
    page.click("#strip [data-act=clear]")
    wait_for_photos(page, 0)

    _hand_in(page, [f"{number}.png" for number in range(40)], data)
    wait_for_photos(page, 32)
    assert "At most 32" in page.inner_text("#photo-alerts")
    assert _names(page) == [f"{number}.png" for number in range(32)]


def _names(page) -> list[str]:
    return page.evaluate("[...document.querySelectorAll('#strip img')].map((image) => image.title)")


def _hand_in(page, names: list[str], data: bytes) -> None:
    """Upload the same picture under several names, which need not be possible on this machine."""
    files = [{"name": name, "mimeType": "image/png", "buffer": data} for name in names]
    page.set_input_files("#photos input[type=file]", files)
