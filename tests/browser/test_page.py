"""The Reconstruct page as a person meets it."""

from __future__ import annotations

from browser_steps import (
    WAIT,
    add_photos,
    choose_quick_settings,
    close_page,
    drag,
    open_page,
    picture,
    press,
    set_number,
    turn_to,
    wait_for_model,
    wait_for_photos,
)
from PIL import Image, ImageChops


def test_an_empty_page_says_what_to_do(page):
    assert page.is_visible("text=Your model will appear here")
    assert page.is_disabled("#cancel")
    page.click("#settings > button")
    turn_to(page, "#settings", "Model file")
    page.wait_for_function("document.querySelector('#setting-longest_side input').value === ''", timeout=WAIT)
    press(page, "#generate")
    page.wait_for_selector(".status.stopped >> text=There are no views yet", timeout=WAIT)
    page.wait_for_selector("#generate:not([disabled])", timeout=WAIT)
    assert page.is_visible("text=Your model will appear here")


def test_photos_are_ordered_removed_masked_and_looked_at(page, photos, tmp_path):
    blurred = tmp_path / "cut-off.png"
    Image.open(photos[0]).crop((40, 30, 90, 80)).save(blurred)
    add_photos(page, [*photos[:2], photos[0], str(blurred)])
    page.wait_for_selector("#strip li:nth-child(3) .badge >> text=Near-duplicate", timeout=WAIT)
    names = "[...document.querySelectorAll('#strip li img')].map(image => image.title)"
    assert page.evaluate(names) == ["photo-0.png", "photo-1.png", "photo-0.png", "cut-off.png"]

    page.click("#strip li:nth-child(2) [data-act=left]")
    page.wait_for_function(f"{names}[0] === 'photo-1.png'", timeout=WAIT)
    # Faster than the first click is answered.
    page.evaluate("document.querySelectorAll('#strip li:nth-child(n+3) [data-act=remove]').forEach((it) => it.click())")
    wait_for_photos(page, 2)

    page.click("#strip li:nth-child(1) [data-act=mask]")
    page.wait_for_selector("studio-mask[data-state=ready]", timeout=WAIT)
    before = picture(page, "studio-mask canvas")
    drag(page, "studio-mask canvas", 60, 60)
    assert ImageChops.difference(before, picture(page, "studio-mask canvas")).getbbox() is not None
    page.click("studio-mask .mask-apply")
    page.wait_for_selector("#strip li:nth-child(1) .badge >> text=Masked", timeout=WAIT)
    wait_for_photos(page, 2)
    page.click("#strip [data-act=clear]")
    wait_for_photos(page, 0)


def test_what_is_cancelled_or_refused_leaves_the_earlier_model(page, photos, tmp_path):
    add_photos(page, photos[:2])
    choose_quick_settings(page)
    press(page, "#generate")
    wait_for_model(page)
    set_number(page, "#setting-video_frames", 240)
    set_number(page, "#setting-video_size", 512)
    press(page, "#generate")
    page.wait_for_selector(".status.busy .stages .now", timeout=WAIT)
    page.click("#cancel")
    page.wait_for_selector(".status.stopped >> text=Cancelled", timeout=WAIT)
    assert page.is_visible("#model canvas")

    # A picture that can be read but shows nothing: noted at once, and refused.
    Image.new("RGB", (64, 64), (90, 90, 90)).save(tmp_path / "wall.png")
    add_photos(page, [str(tmp_path / "wall.png")], 3)
    assert "No object" in page.inner_text("#strip li:nth-child(3) .badge")
    press(page, "#generate")
    page.wait_for_selector(".status.stopped >> text='wall.png': No object stands out", timeout=WAIT)
    page.wait_for_selector("#generate:not([disabled])", timeout=WAIT)
    assert page.is_visible("#model canvas") and page.locator("#strip li").count() == 3


def test_the_page_fits_a_phone_and_shows_what_was_asked_for(browser, server):
    page = open_page(browser, server, 390, 700)
    for tab in ("Refine", "Compare", "History", "Reconstruct"):
        turn_to(page, "#pages", tab)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
    press(page, "#generate")
    page.wait_for_function("document.querySelector('.status.stopped')?.getBoundingClientRect().top < 300", timeout=WAIT)
    close_page(page)
