"""The page of headstart serve in a browser: every way to bring an image, without a mouse, without a network."""

import base64
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.chromium import Watched
from support.planting import encoded, scene
from support.serving import Running, calibration_of, png, running, write_model

import headstart
from headstart.predict import Predictor

sync_api = pytest.importorskip("playwright.sync_api", reason="NOT TESTED IN A BROWSER: pip install playwright")
expect = sync_api.expect

CHROMIUM = os.environ.get("HEADSTART_TEST_CHROMIUM") or next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="NOT TESTED IN A BROWSER: no chromium on this machine"),
]

FROM_ELSEWHERE = "That was no file. Save the image first, or copy it and paste it here."


@pytest.fixture(scope="module")
def predictor(tmp_path_factory, tiny_data) -> Predictor:
    folder = tmp_path_factory.mktemp("model")
    plain = write_model(folder / "plain.safetensors", image_size=224)
    calibration = calibration_of(plain, sorted((tiny_data / "val").rglob("*.*")))
    return headstart.load(write_model(folder / "model.safetensors", image_size=224, calibration=calibration))


@pytest.fixture(scope="module")
def server(predictor) -> Iterator[Running]:
    with running(predictor) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # no name is looked up: what asks for one fails
        arguments = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]
        expect.set_options(timeout=30_000)
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield started
        started.close()


@pytest.fixture
def page(browser, server) -> Iterator[Any]:
    """The page, opened. At the end: it asked nobody else, and complained of nothing but answers of 4xx."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    asked: list[str] = []
    complaints: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    opened.on("console", lambda message: complaints.append(message.text))
    opened.on("filechooser", lambda chooser: None)  # from now on, not only while one is expected
    opened.goto(server.url)
    yield opened
    context.close()
    assert asked
    assert not [url for url in asked if not re.match(r"(blob:)?http://127\.0\.0\.1:\d+/|data:", url)]
    assert not [text for text in complaints if not re.search(r"a status of 4\d\d|ERR_CONNECTION_REFUSED", text)]


def choose(page: Any, *files: dict[str, Any] | Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose images").click()
    chooser.value.set_files(list(files))


def named(name: str, data: bytes, kind: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": kind, "buffer": data}


def card(page: Any, name: str) -> Any:
    return page.get_by_role("listitem", name=name, exact=True)


def assert_says(page: Any, name: str, data: bytes, predictor: Predictor) -> None:
    """The card has the answer of predict, in words and in bars."""
    (prediction,) = predictor.predict([data])
    found = card(page, name)
    assert prediction.label is not None
    assert prediction.probability is not None
    said = "None of these" if prediction.none_of_these else f"{prediction.label}, {100 * prediction.probability:.1f} %"
    expect(found.locator(".said")).to_have_text(said)
    rows = [f"{label}{100 * share:.1f} %" for label, share in prediction.top]
    expect(found.get_by_role("list", name="Probabilities").get_by_role("listitem")).to_have_text(rows)
    expect(page.get_by_role("status")).to_have_text(f"{name}: {said}")


def test_chosen_images_are_classified(page, predictor) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text("ants & bees, <b>wasps</b> or 日本?")
    data = png(scene(0, 1))
    choose(page, named("<i>one</i>.png", data))
    assert_says(page, "<i>one</i>.png", data, predictor)
    several = {f"{number}.jpg": encoded(scene(number, number), "JPEG") for number in range(6)}
    choose(page, *(named(name, image) for name, image in several.items()))
    expect(page.locator("#count")).to_have_text("7 images done")
    names = [text.strip() for text in page.locator("#results > li .name").all_text_contents()]
    assert names == [*several, "<i>one</i>.png"]  # the newest first, in their order
    width = card(page, "0.jpg").locator(".picture img").evaluate("image => image.naturalWidth")
    assert width == 224
    page.get_by_role("button", name="Remove all").click()
    expect(page.locator("#results > li")).to_have_count(0)
    expect(page.locator("#count")).to_have_text("")


def test_a_dropped_image_is_classified(page, predictor) -> None:
    data = png(scene(1, 2))
    text = base64.b64encode(data).decode()
    transfer = page.evaluate_handle(
        """text => {
            const transfer = new DataTransfer();
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            transfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
            return transfer;
        }""",
        text,
    )
    page.dispatch_event("main", "dragenter", {"dataTransfer": transfer})
    expect(page.locator("body")).to_have_class("over")
    page.dispatch_event("main", "drop", {"dataTransfer": transfer})
    expect(page.locator("body")).not_to_have_class("over")
    assert_says(page, "dropped.png", data, predictor)
    page.dispatch_event("main", "drop", {"dataTransfer": page.evaluate_handle("() => new DataTransfer()")})
    expect(page.get_by_role("status")).to_have_text(FROM_ELSEWHERE)


def test_a_pasted_image_is_classified(page, predictor) -> None:
    data = png(scene(2, 3))
    page.evaluate(
        """async text => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            await navigator.clipboard.write([new ClipboardItem({ "image/png": new Blob([bytes], { type: "image/png" }) })]);
        }""",
        base64.b64encode(data).decode(),
    )
    page.keyboard.press("Control+V")
    assert_says(page, "image.png", data, predictor)
    page.evaluate("() => navigator.clipboard.writeText('words')")
    page.keyboard.press("Control+V")
    expect(page.get_by_role("status")).to_have_text("There is no image in the clipboard.")


def test_a_wrong_file_is_told_so_and_the_next_one_is_classified(page, predictor) -> None:
    good = png(scene(0, 4))
    choose(page, named("notes.txt", b"no image at all", "text/plain"), named("good.png", good), named("empty.png", b""))
    expect(page.locator("#count")).to_have_text("3 images done")
    expect(card(page, "notes.txt").locator(".why")).to_contain_text("Not classified: this is not an image")
    expect(card(page, "empty.png").locator(".why")).to_have_text("Not classified: the file is empty.")
    expect(card(page, "good.png").locator(".share")).to_have_count(3)


def test_fifty_megapixels_are_classified_and_too_many_are_told_so(page, predictor, tmp_path) -> None:
    telephone = tmp_path / "telephone.jpg"
    scene(1, 5).resize((8160, 6144), Image.Resampling.NEAREST).save(telephone, quality=80)
    poster = tmp_path / "poster.png"
    Image.new("1", (10_000, 8000)).save(poster)
    long = tmp_path / "long.bin"
    long.write_bytes(b"\0" * (33 * 2**20))
    choose(page, telephone, poster, long)
    expect(page.locator("#count")).to_have_text("3 images done")
    expect(card(page, "poster.png").locator(".why")).to_have_text(
        "Not classified: the image has more than 64 megapixels."
    )
    expect(card(page, "long.bin").locator(".why")).to_have_text("Not classified: the file is larger than 32 MiB.")
    (prediction,) = predictor.predict([telephone])
    expect(card(page, "telephone.jpg").locator(".what").first).to_have_text(prediction.label or "")


def test_everything_can_be_done_with_the_keyboard(page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Choose images")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([named("keys.png", png(scene(0, 6)))])
    found = card(page, "keys.png")
    look = found.get_by_role("button", name="Where it looked")
    expect(look).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("Tab")
    expect(look).to_be_focused()
    page.keyboard.press("Space")
    expect(look).to_have_attribute("aria-pressed", "true")
    expect(found.get_by_role("img", name="Where the model looked, in orange")).to_be_visible()
    expect(found.locator("figcaption")).to_contain_text("Orange: what speaks most for")
    coloured = found.locator("canvas").evaluate(
        "map => map.getContext('2d').getImageData(0, 0, 224, 224).data.filter((value, at) => at % 4 === 3 && value > 100).length"
    )
    assert coloured > 0
    page.keyboard.press("Tab")
    expect(found.get_by_role("button", name="Remove keys.png")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#results > li")).to_have_count(0)
    expect(page.get_by_role("button", name="Choose images")).to_be_focused()


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (768, "dark")])
def test_nothing_is_cut_off_on_a_small_screen(width: int, scheme: str, page, tmp_path) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    long_name = "a_very_long_name_without_any_place_to_break_" * 3 + ".png"
    choose(page, named(long_name, png(scene(0, 7))), named("bad.png", b"no"))
    expect(page.locator("#count")).to_have_text("2 images done")
    for address in ("", "docs"):
        if address:
            page.goto(page.url + address)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert Watched(page).faults_of_accessibility() == []
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_a_server_that_is_gone_is_told_so(predictor, page) -> None:
    with running(predictor) as other:
        page.goto(other.url)
    choose(page, named("late.png", png(scene(0, 8))))
    expect(card(page, "late.png").locator(".why")).to_contain_text("the server cannot be reached")
