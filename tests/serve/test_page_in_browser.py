"""The page of headstart serve in a browser: every way to add an image, also by keyboard and without a network."""

import base64
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.chromium import Watched, chromium
from support.planting import encoded, scene
from support.serving import Running, calibration_of, png, running, write_model

import headstart
from headstart.predict.predictor import Predictor
from headstart.serve.limits import Limits

sync_api = pytest.importorskip("playwright.sync_api", reason="NOT TESTED IN A BROWSER: pip install playwright")
expect = sync_api.expect

pytestmark = pytest.mark.browser

IMAGE_SIZE = 128  # px, of the model: small, with a Grad-CAM map that is not zero


@pytest.fixture(scope="module")
def predictor(tmp_path_factory, tiny_data) -> Predictor:
    folder = tmp_path_factory.mktemp("model")
    plain = write_model(folder / "plain.safetensors", image_size=IMAGE_SIZE)
    calibration = calibration_of(plain, sorted((tiny_data / "val").rglob("*.*")))
    return headstart.load(write_model(folder / "model.safetensors", image_size=IMAGE_SIZE, calibration=calibration))


@pytest.fixture(scope="module")
def server(predictor) -> Iterator[Running]:
    with running(predictor) as started:
        yield started


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    expect.set_options(timeout=30_000)
    with chromium(
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"
    ) as started:  # every look-up of a name fails
        yield started


@pytest.fixture
def page(browser, server) -> Iterator[Any]:
    """The page, opened. At the end it must have sent requests to this machine only, and the console must show nothing
    but answers of 4xx."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
    context.grant_permissions(["clipboard-read", "clipboard-write"], origin=server.url)
    opened = context.new_page()
    opened.set_default_timeout(20_000)
    requests: list[str] = []
    messages: list[str] = []
    opened.on("request", lambda request: requests.append(request.url))
    opened.on("pageerror", lambda error: messages.append(str(error)))
    opened.on("console", lambda message: messages.append(message.text))
    opened.on("filechooser", lambda chooser: None)  # from now on, not only while one is expected
    opened.goto(server.url)
    yield opened
    context.close()
    assert requests
    assert not [url for url in requests if not re.match(r"(blob:)?http://127\.0\.0\.1:\d+/|data:", url)]
    assert not [text for text in messages if not re.search(r"a status of 4\d\d|ERR_CONNECTION_REFUSED", text)]


def choose(page: Any, *files: dict[str, Any] | Path) -> None:
    with page.expect_file_chooser() as chooser:
        page.locator("#pick").click()
    chooser.value.set_files(list(files))


def named(name: str, data: bytes, kind: str = "image/png") -> dict[str, Any]:
    return {"name": name, "mimeType": kind, "buffer": data}


def card(page: Any, name: str) -> Any:
    return page.get_by_role("listitem", name=name, exact=True)


def percent(share: float) -> str:
    """As a pattern: with or without a space before the sign."""
    return re.escape(f"{100 * share:.1f}") + r"\s?%"


def done(page: Any, num_images: int) -> None:
    """Wait until so many images have been answered or refused."""
    expect(page.locator("#count")).to_contain_text(re.compile(rf"^{num_images} "))
    expect(page.locator("#results > li.waiting")).to_have_count(0)


def assert_shows(page: Any, name: str, data: bytes, predictor: Predictor) -> None:
    """The card has the answer of predict, as a text and in bars."""
    (prediction,) = predictor.predict([data])
    found = card(page, name)
    assert prediction.label is not None
    assert prediction.probability is not None
    answer = re.escape(prediction.label) + ".*" + percent(prediction.probability)
    if prediction.none_of_these:
        answer = "(?i:none of these)"
    expect(found.locator(".headline")).to_have_text(re.compile(answer))
    rows = [re.compile(re.escape(label) + percent(share)) for label, share in prediction.top]
    expect(found.locator(".bars > li")).to_have_text(rows)
    expect(page.get_by_role("status")).to_have_text(re.compile(f"{re.escape(name)}.*{answer}"))


def test_chosen_images_are_classified(page, predictor) -> None:
    expect(page.get_by_role("heading", level=1)).to_have_text("ants & bees, <b>wasps</b> or 日本?")
    data = png(scene(0, 1))
    choose(page, named("<i>one</i>.png", data))
    assert_shows(page, "<i>one</i>.png", data, predictor)
    several = {f"{number}.jpg": encoded(scene(number, number), "JPEG") for number in range(6)}
    choose(page, *(named(name, image) for name, image in several.items()))
    done(page, 7)
    names = [text.strip() for text in page.locator("#results > li .name").all_text_contents()]
    assert names == [*several, "<i>one</i>.png"]  # the newest first, in their order
    width = card(page, "0.jpg").locator(".picture img").evaluate("image => image.naturalWidth")
    assert width == IMAGE_SIZE
    page.locator("#clear").click()
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
    assert_shows(page, "dropped.png", data, predictor)
    page.dispatch_event("main", "drop", {"dataTransfer": page.evaluate_handle("() => new DataTransfer()")})
    expect(page.get_by_role("status")).not_to_contain_text("dropped.png")
    expect(page.get_by_role("status")).to_contain_text("file")


def test_a_pasted_image_is_classified(page, predictor) -> None:
    data = png(scene(2, 3))
    page.evaluate(
        """async text => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const image = new Blob([bytes], { type: "image/png" });
            await navigator.clipboard.write([new ClipboardItem({ "image/png": image })]);
        }""",
        base64.b64encode(data).decode(),
    )
    page.keyboard.press("Control+V")
    assert_shows(page, "image.png", data, predictor)
    page.evaluate("() => navigator.clipboard.writeText('words')")
    page.keyboard.press("Control+V")
    expect(page.get_by_role("status")).to_contain_text("clipboard")


def test_a_file_that_is_not_an_image_is_refused_and_the_next_one_is_classified(page, predictor) -> None:
    good = png(scene(0, 4))
    choose(page, named("notes.txt", b"no image at all", "text/plain"), named("good.png", good), named("empty.png", b""))
    done(page, 3)
    expect(card(page, "notes.txt").locator(".why")).to_contain_text("JPEG")  # a format that can be read
    expect(card(page, "empty.png").locator(".why")).to_contain_text("empty")
    expect(card(page, "good.png").locator(".share")).to_have_count(3)


def assert_large_files(page: Any, folder: Path, predictor: Predictor, *, size: tuple[int, int], limits: Limits) -> None:
    """A photograph of this size is classified, a poster with more pixels and a file with more bytes are refused."""
    photograph, poster, long = folder / "photograph.jpg", folder / "poster.png", folder / "long.bin"
    scene(1, 5).resize(size, Image.Resampling.NEAREST).save(photograph, quality=80)
    Image.new("1", (size[0], limits.pixels // size[0] + 1)).save(poster)
    long.write_bytes(b"\0" * (limits.body_bytes + 1))
    choose(page, photograph, poster, long)
    done(page, 3)
    expect(card(page, "poster.png").locator(".why")).to_contain_text(f"{limits.megapixels} megapixels")
    expect(card(page, "long.bin").locator(".why")).to_contain_text(f"{limits.megabytes} MiB")
    (prediction,) = predictor.predict([photograph])
    expect(card(page, "photograph.jpg").locator(".what").first).to_have_text(prediction.label or "")


def test_a_large_photograph_is_classified_and_too_many_pixels_or_bytes_are_refused(page, predictor, tmp_path) -> None:
    limits = {"megapixels": 2, "megabytes": 1}
    with running(predictor, **limits) as small:
        page.goto(small.url)
        expect(page.locator("#choose")).to_contain_text("1 MiB and 2 megapixels")
        assert_large_files(page, tmp_path, predictor, size=(1500, 1300), limits=Limits(**limits))


@pytest.mark.extended
def test_by_default_a_photograph_of_50_megapixels_is_classified(page, predictor, tmp_path) -> None:
    assert_large_files(page, tmp_path, predictor, size=(8160, 6144), limits=Limits())


def test_everything_can_be_done_with_the_keyboard(page) -> None:
    page.keyboard.press("Tab")
    expect(page.locator(".skip")).to_be_focused()
    page.keyboard.press("Enter")
    page.keyboard.press("Tab")
    expect(page.locator("#pick")).to_be_focused()
    with page.expect_file_chooser() as chooser:
        page.keyboard.press("Enter")
    chooser.value.set_files([named("keys.png", png(scene(0, 6)))])
    found = card(page, "keys.png")
    look = found.locator("button[aria-pressed]")
    expect(look).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("Tab")
    expect(look).to_be_focused()
    page.keyboard.press("Space")
    expect(look).to_have_attribute("aria-pressed", "true")
    heat = found.locator("canvas[role=img]")
    expect(heat).to_be_visible()
    expect(heat).to_have_attribute("aria-label", re.compile("."))
    expect(found.locator("figcaption")).to_contain_text("Grad-CAM")
    coloured = heat.evaluate(
        "map => map.getContext('2d').getImageData(0, 0, 224, 224).data"
        ".filter((value, at) => at % 4 === 3 && value > 100).length"
    )
    assert coloured > 0
    page.keyboard.press("Tab")
    expect(found.get_by_role("button", name=re.compile(r"keys\.png"))).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("#results > li")).to_have_count(0)
    expect(page.locator("#pick")).to_be_focused()


@pytest.mark.parametrize(("width", "scheme"), [(320, "light"), (768, "dark")])
def test_nothing_is_cut_off_on_a_small_screen(width: int, scheme: str, page, tmp_path) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    long_name = "a_very_long_name_without_any_place_to_break_" * 3 + ".png"
    choose(page, named(long_name, png(scene(0, 7))), named("bad.png", b"no"))
    done(page, 2)
    for address in ("", "docs"):
        if address:
            page.goto(page.url + address)
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        assert Watched(page).faults_of_accessibility() == []
    page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_a_server_that_is_gone_is_reported(predictor, page) -> None:
    with running(predictor) as other:
        page.goto(other.url)
    choose(page, named("late.png", png(scene(0, 8))))
    expect(card(page, "late.png").locator(".why")).to_contain_text("server")
