"""headstart serve predicts as predict does, enforces every limit, and reveals nothing of the machine."""

import base64
import io
import re
import shutil
import socket
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support import REPOSITORY
from support.planting import encoded, huge_png, scene
from support.serving import BYTES, Running, begin, calibration_of, form, png, received, running, write_model

import headstart
from headstart.errors import InputError
from headstart.predict.predictor import Predictor
from headstart.serve.batches import Batches
from headstart.serve.limits import Limits


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "model.safetensors")


@pytest.fixture(scope="module")
def predictor(model) -> Predictor:
    return headstart.load(model)


@pytest.fixture(scope="module")
def server(predictor) -> Iterator[Running]:
    with running(predictor, megabytes=2, megapixels=4, images=3) as started:
        yield started


@pytest.fixture(scope="module")
def photos(tiny_data) -> list[Path]:
    return sorted((tiny_data / "val").rglob("*.*"))


def test_the_answers_are_those_of_predict(server, predictor, photos) -> None:
    for photo, expected in zip(photos[:4], predictor.predict(photos[:4]), strict=True):
        (answer,) = server.predict(photo.read_bytes()).json["results"]
        assert answer["label"] == expected.label
        assert [entry["class"] for entry in answer["top"]] == [name for name, _ in expected.top]
        assert [entry["probability"] for entry in answer["top"]] == pytest.approx(
            [probability for _, probability in expected.top], rel=1e-5
        )
        assert answer["probability"] == answer["top"][0]["probability"] < 0.95


def test_a_form_of_several_files_gets_an_answer_for_each(server, predictor, photos) -> None:
    body, headers = form([(photo.name, photo.read_bytes()) for photo in photos[:3]])
    answers = server.ask("POST", "/predict?top=1", body, headers).json["results"]
    assert [answer["name"] for answer in answers] == [photo.name for photo in photos[:3]]
    assert [answer["label"] for answer in answers] == [one.label for one in predictor.predict(photos[:3])]
    assert [len(answer["top"]) for answer in answers] == [1, 1, 1]


def test_a_form_stays_in_memory_and_must_be_complete(server, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    large = encoded(Image.fromarray(np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)), "PNG")
    assert 1.2e6 < len(large) < 1.9e6  # Starlette writes files of 1 MiB and more to disk
    body, headers = form([("a.png", TINY), ("large.png", large)])
    reply = server.ask("POST", "/predict", body, headers)
    assert [result["name"] for result in reply.json["results"]] == ["a.png", "large.png"]
    cut = server.ask("POST", "/predict", body[: -len(large) // 2], headers)
    assert (cut.status, "ends" in cut.json["detail"]) == (400, True)


def test_one_bad_file_among_good_ones_has_an_error_of_its_own(server, photos) -> None:
    body, headers = form([("good.png", photos[0].read_bytes()), ("bad.png", b"no image")])
    reply = server.ask("POST", "/predict", body, headers)
    good, bad = reply.json["results"]
    assert (reply.status, good["name"], bad["name"], bad["error"]["status"]) == (200, "good.png", "bad.png", 422)
    body, headers = form([("bad.png", b"no image")])
    assert server.ask("POST", "/predict", body, headers).status == 422


def test_the_gradcam_map_and_the_preprocessed_image_come_on_request(server, predictor, photos) -> None:
    data = photos[0].read_bytes()
    (plain,) = server.predict(data).json["results"]
    assert (plain["gradcam"], plain["preprocessed"]) == (None, None)
    (full,) = server.predict(data, "?gradcam=true&preprocessed=true").json["results"]
    pixels = predictor.transform(photos[0])
    heat = predictor.attention(predictor.compute(pixels[None]))[0]
    np.testing.assert_allclose(full["gradcam"], heat, atol=6e-4)
    prefix, _, text = full["preprocessed"].partition(",")
    seen = np.asarray(Image.open(io.BytesIO(base64.b64decode(text))), dtype=np.float64)
    assert prefix == "data:image/jpeg;base64"
    assert np.abs(seen - pixels.permute(1, 2, 0).numpy()).mean() < 8


def test_a_calibrated_model_also_gives_prediction_sets_and_none_of_these(model, photos, tmp_path) -> None:
    predictor = headstart.load(write_model(tmp_path / "m.safetensors", calibration=calibration_of(model, photos)))
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    strange = png(Image.fromarray(noise))
    with running(predictor) as server:
        (known,) = server.predict(photos[0].read_bytes()).json["results"]
        (expected,) = predictor.predict([photos[0]])
        assert known["probability"] == pytest.approx(expected.probability, rel=1e-5)
        assert known["prediction_set"] == list(expected.prediction_set or ())
        assert known["prediction_set"]
        assert known["none_of_these"] is expected.none_of_these
        (unknown,) = server.predict(strange).json["results"]
        assert unknown["none_of_these"] is predictor.predict([strange])[0].none_of_these
        assert server.ask("GET", "/model").json["calibrated"] is True


def test_many_clients_at_once_get_what_one_alone_gets(server, photos) -> None:
    images = [photo.read_bytes() for photo in photos] * 4
    alone = [server.predict(image).json["results"][0]["probability"] for image in images[: len(photos)]] * 4
    with ThreadPoolExecutor(20) as clients:
        together = [reply.json["results"][0]["probability"] for reply in clients.map(server.predict, images)]
    assert len(together) == 60
    assert together == pytest.approx(alone, rel=1e-5)


def test_requests_in_one_batch_keep_their_own_options(predictor) -> None:
    with running(predictor, wait_ms=500) as server, ThreadPoolExecutor(3) as clients:
        queries = ["?top=1", "?top=3", "?top=2&gradcam=true"]
        replies = list(clients.map(lambda query: server.predict(TINY, query).json["results"][0], queries))
    assert [len(reply["top"]) for reply in replies] == [1, 3, 2]
    assert [reply["gradcam"] is None for reply in replies] == [True, True, False]


def test_images_that_arrive_during_a_batch_form_the_next_batch() -> None:
    sizes: list[int] = []
    started, go_on = threading.Event(), threading.Event()

    def compute(items: list[int]) -> list[int]:
        sizes.append(len(items))
        started.set()
        assert go_on.wait(30)
        return [-item for item in items]

    batches = Batches(compute, largest=4, wait_s=0, start=lambda: None)
    first = batches.submit(1)
    assert started.wait(30)
    later = [batches.submit(number) for number in range(2, 9)]
    gone = later.pop()
    assert gone.cancel()
    go_on.set()
    assert [future.result(30) for future in [first, *later]] == [-1, -2, -3, -4, -5, -6, -7]
    batches.close()
    assert sizes == [1, 4, 2]


def test_a_batch_that_fails_fails_alone() -> None:
    def compute(items: list[int]) -> list[int]:
        if 13 in items:
            raise ValueError("unlucky")
        return items

    batches = Batches(compute, largest=4, wait_s=0, start=lambda: None)
    with pytest.raises(ValueError, match="unlucky"):
        batches.submit(13).result(30)
    assert batches.submit(14).result(30) == 14
    batches.close()


def many_scans(count: int) -> bytes:
    """A progressive JPEG whose last scan comes again and again."""
    data = encoded(scene(0, 1), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    return data[:-2] + data[last:-2] * count + data[-2:]


FLOAT = encoded(Image.new("F", (8, 8), 0.5), "TIFF")
FIELD = b'--cut\r\nContent-Disposition: form-data; name="top"\r\n\r\n3\r\n--cut--\r\n'
EMPTY = b"--cut--\r\n"
FORM = {"Content-Type": "multipart/form-data; boundary=cut"}
TINY = encoded(Image.new("RGB", (8, 8), "red"), "PNG")
FILE, FILES = form([("a.png", TINY)])[0], form([("a.png", TINY)] * 4)[0]

REFUSED = {
    "no body": ("/predict", b"", BYTES, 422, "empty"),
    "not an image": ("/predict", b"<html>404</html>", BYTES, 422, "JPEG, PNG"),
    "cut off": ("/predict", encoded(scene(0, 2), "PNG")[:2000], BYTES, 422, "JPEG, PNG"),
    "float pixels": ("/predict", FLOAT, BYTES, 422, "16 bits"),
    "an image of 5 megapixels": ("/predict", encoded(Image.new("L", (2500, 2000)), "PNG"), BYTES, 413, "4 megapixels"),
    "a bomb": ("/predict", huge_png(), BYTES, 413, "4 megapixels"),
    "too long and thin": ("/predict", encoded(Image.new("L", (1, 20000)), "PNG"), BYTES, 422, "thin"),
    "an icon": ("/predict", encoded(Image.new("RGB", (64, 64)), "ICO"), BYTES, 422, "ICO"),
    "endless scans": ("/predict", many_scans(500), BYTES, 422, "scans"),
    "3 MiB": ("/predict", b"x" * (3 * 2**20), BYTES, 413, "2 MiB"),
    "four images": ("/predict", FILES, FORM, 400, "3 images"),
    "json": ("/predict", b"{}", {"Content-Type": "application/json"}, 415, "application/octet-stream"),
    "compressed": ("/predict", TINY, {**BYTES, "Content-Encoding": "gzip"}, 415, "Content-Encoding"),
    "a file called file": ("/predict", FILE.replace(b'name="image"', b'name="file"'), FORM, 400, "/predict?top=3"),
    "a field": ("/predict", FIELD, FORM, 400, "/predict?top=3"),
    "an empty form": ("/predict", EMPTY, FORM, 400, "file"),
    "a form cut off": ("/predict", FILES[:60], FORM, 400, "ends"),
    "no form": ("/predict", b"nothing of the kind", FORM, 400, "malformed"),
    "no boundary": ("/predict", FILES, {"Content-Type": "multipart/form-data"}, 400, "boundary"),
    "top=0": ("/predict?top=0", TINY, BYTES, 400, "top"),
    "top=x": ("/predict?top=x", TINY, BYTES, 400, "top"),
    "preprocessed=1": ("/predict?preprocessed=1", TINY, BYTES, 400, "preprocessed"),
    "unknown": ("/predict?topp=3", TINY, BYTES, 400, "top, gradcam and preprocessed"),
    "twice": ("/predict?top=3&top=4", TINY, BYTES, 400, "twice"),
    "elsewhere": ("/predict/", TINY, BYTES, 404, "GET /docs"),
    "other host": ("/predict", TINY, {**BYTES, "Host": "rebound.example"}, 421, "--allow_host"),
    "other site": ("/predict", TINY, {**BYTES, "Origin": "https://other.example"}, 403, "site"),
    "no address": ("/predict", TINY, {**BYTES, "Origin": "http://["}, 403, "site"),
    "no site": ("/predict", TINY, {**BYTES, "Origin": "null"}, 403, "site"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refused_request_gets_a_status_and_a_reason(name: str, server, tmp_path) -> None:
    target, body, headers, status, part = REFUSED[name]
    reply = server.ask("POST", target, body, headers)
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json.keys() == {"type", "title", "status", "detail"}
    assert part in reply.json["detail"]
    assert_reveals_nothing(reply.body)
    assert server.predict(TINY).status == 200


def assert_reveals_nothing(body: bytes) -> None:
    """The body has no path, object, traceback or module name."""
    text = body.decode()
    for sign in ("Traceback", "0x", "<_io", ".py", "site-packages", "/tmp", "/home", "/root", "Error(", "PIL", "torch"):
        assert sign not in text, (sign, text)


def test_a_body_of_unknown_length_is_counted_while_it_arrives(server) -> None:
    chunks = (b"x" * 2**18 for _ in range(20))
    reply = server.ask("POST", "/predict", chunks, {**BYTES, "Transfer-Encoding": "chunked"})
    assert reply.status == 413
    assert "2 MiB" in reply.json["detail"]


def test_a_declared_length_that_is_too_large_is_refused_before_the_body_is_sent(server) -> None:
    with begin(server.port, declared=10**9, sent=b"") as connection:
        assert received(connection).startswith(b"HTTP/1.1 413 ")


@pytest.mark.parametrize(
    ("target", "kind", "status"),
    [
        ("/predict", "image/png", 413),
        ("/predict", "application/json", 415),
        ("/predict?top=x", "image/png", 400),
        ("/elsewhere", "image/png", 404),
    ],
)
def test_a_client_that_sends_everything_before_it_reads_gets_an_answer(target, kind, status, server) -> None:
    body = b"x" * (12 * 2**20)  # far more than the socket buffers hold
    head = (
        f"POST {target} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Type: {kind}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head.encode() + body)
        assert received(connection).startswith(f"HTTP/1.1 {status} ".encode())
    assert server.predict(TINY).status == 200


def test_more_requests_than_may_wait_get_a_503_with_retry_after(predictor) -> None:
    with running(predictor, requests=1) as server, begin(server.port, declared=len(TINY), sent=TINY[:9]) as slow:
        while server.ask("GET", "/health").json["waiting"] == 0:
            pass
        reply = server.predict(TINY)
        assert (reply.status, reply.headers["retry-after"]) == (503, "1")
        slow.sendall(TINY[9:])
        assert received(slow).startswith(b"HTTP/1.1 200 ")
        assert server.predict(TINY).status == 200


def test_more_bytes_than_may_wait_get_a_503_with_retry_after(predictor) -> None:
    most = 2**20
    with running(predictor, megabytes=1, megabytes_together=1) as server:
        with begin(server.port, declared=most, sent=b"x" * (most - 10)) as slow:
            while server.ask("GET", "/health").json["bytes"] < most - 10:
                pass
            reply = server.predict(TINY)
            assert (reply.status, reply.headers["retry-after"]) == (503, "1")
            slow.sendall(b"x" * 10)
            assert received(slow).startswith(b"HTTP/1.1 422 ")
        assert server.predict(TINY).status == 200


def test_a_request_that_does_not_arrive_gets_a_408(predictor) -> None:
    with running(predictor, seconds=1) as server:
        with begin(server.port, declared=100, sent=b"x") as slow:
            assert received(slow).startswith(b"HTTP/1.1 408 ")
        assert server.ask("GET", "/health").json["waiting"] == 0


def test_an_answer_that_takes_too_long_is_a_504(predictor, monkeypatch) -> None:
    go_on = threading.Event()
    original = predictor.compute
    with running(predictor, seconds=1) as server:
        server.predict(TINY)
        monkeypatch.setattr(predictor, "compute", lambda pixels: (go_on.wait(30), original(pixels))[1])
        reply = server.predict(TINY)
        go_on.set()
        assert reply.status == 504
        assert server.predict(TINY).status == 200


def test_an_internal_error_is_a_500_and_shows_in_the_log_only(predictor, monkeypatch, capsys) -> None:
    def fail(pixels: object) -> None:
        raise RuntimeError("cannot read /secret/place/model.py")

    with running(predictor) as server:
        server.predict(TINY)
        with monkeypatch.context() as patched:
            patched.setattr(predictor, "compute", fail)
            reply = server.predict(TINY)
        assert reply.status == 500
        assert_reveals_nothing(reply.body)
        assert "secret" not in reply.body.decode()
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert server.predict(TINY).status == 200
    assert "/secret/place" in capsys.readouterr().err


def test_a_client_that_goes_away_leaves_nothing_behind(server) -> None:
    for _ in range(3):
        begin(server.port, declared=1000, sent=b"half").close()
    while server.ask("GET", "/health").json["waiting"]:
        pass
    assert server.predict(TINY).status == 200


@pytest.mark.parametrize(
    "garbage", [b"\x00\xff" * 50, b"GET / HTTP/9.9\r\n\r\n", b"POST /predict\r\n\r\n", b"\r\n" * 30]
)
def test_bytes_that_are_not_http_are_refused(garbage: bytes, server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(garbage + b"\r\n\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert_reveals_nothing(received(connection))
    assert server.predict(TINY).status == 200


@pytest.mark.parametrize(
    "host", ["localhost", "127.0.0.1:80", "[::1]:8000", "192.168.1.7", "name.example", "NAME.example:80"]
)
def test_numeric_hosts_and_allowed_names_are_answered(host: str, predictor) -> None:
    with running(predictor, names=("name.example",)) as server:
        assert server.ask("GET", "/health", headers={"Host": host}).status == 200


def test_every_answer_has_the_security_headers(server) -> None:
    targets = {"/": 200, "/docs": 200, "/health": 200, "/model": 200, "/openapi.json": 200, "/predict": 405, "/x": 404}
    for target, status in targets.items():
        reply = server.ask("GET", target)
        assert reply.status == status
        assert reply.headers["x-content-type-options"] == "nosniff"
        assert "frame-ancestors 'none'" in reply.headers["content-security-policy"]
        assert "server" not in reply.headers
        assert not [name for name in reply.headers if name.startswith("access-control")]


@pytest.mark.parametrize("target", ["/", "/docs"])
def test_a_page_loads_nothing_from_elsewhere_and_its_policy_allows_only_its_own_code(target: str, server) -> None:
    reply = server.ask("GET", target)
    html, policy = reply.body.decode(), reply.headers["content-security-policy"]
    inside = re.findall(r"<(style|script)>(.*?)</\1>", html, re.DOTALL)
    assert len(inside) == (4 if target == "/" else 3)  # style, theme, page and, on the first page, its script
    for tag, text in inside:
        digest = base64.b64encode(sha256(text.encode()).digest()).decode()
        assert re.search(rf"{tag}-src [^;]*'sha256-{re.escape(digest)}'", policy)
    addresses = re.findall(r'(?:src|href|action|url)\s*[=(]\s*["\']?([^"\')\s>]+)', html)
    assert addresses
    assert not [address for address in addresses if re.match(r"https?:|//", address)]
    assert not re.search(r'\s(style|on\w+)="', html)  # the policy would drop them


def test_the_openapi_document_names_the_classes_and_every_field_of_a_prediction(server, predictor) -> None:
    schemas = server.ask("GET", "/openapi.json").json["components"]["schemas"]
    assert schemas["ClassName"]["enum"] == list(predictor.classes)
    (prediction,) = server.predict(TINY).json["results"]
    assert schemas["ImagePrediction"]["required"] == list(prediction)
    assert schemas["ProblemDetails"]["required"] == list(server.predict(b"").json)


@pytest.mark.parametrize(
    "query", ["top=3.0", "top=%203", "top=+3", "top=1001", "gradcam=True", "gradcam=yes", "top=true"]
)
def test_a_parameter_is_taken_literally(query: str, server) -> None:
    reply = server.predict(TINY, f"?{query}")
    assert (reply.status, query.split("=")[0] in reply.json["detail"]) == (400, True)


@pytest.mark.parametrize("target", ["/", "/docs", "/health", "/model", "/openapi.json"])
def test_head_is_answered_without_a_body(target: str, server) -> None:
    reply = server.ask("HEAD", target)
    assert (reply.status, reply.body) == (200, b"")


def test_the_description_of_the_model_has_no_path(server, predictor) -> None:
    described = server.ask("GET", "/model")
    assert described.json["classes"] == list(predictor.classes)
    assert (described.json["image_size"], described.json["accuracy"]) == (64, 0.75)
    assert_reveals_nothing(described.body)
    assert b"secret" not in described.body


@pytest.mark.parametrize(
    ("wrong", "fragments"),
    [
        ({"megabytes": 0}, "--max_megabytes .*0.* at least 1"),
        ({"seconds": float("nan")}, "--max_seconds .*nan"),
        ({"megapixels": 100}, "--max_megapixels .*100.*89"),
        ({"megabytes": 600}, "--max_megabytes_together .*512.*600"),
    ],
)
def test_limits_that_contradict_are_refused(wrong: dict[str, float], fragments: str) -> None:
    with pytest.raises(InputError, match=fragments):
        Limits(**wrong)


DOCS = (REPOSITORY / "docs" / "how-to" / "serve.md").read_text(encoding="utf-8")


def example(language: str, server: Running, photo: Path) -> str:
    """The only block of the page in that language, with this server and this photograph."""
    (text,) = re.findall(rf"```{language}\n(.*?)```", DOCS, re.DOTALL)
    assert "photo.jpg" in text
    assert "http://127.0.0.1:8000/" in text
    return text.replace("http://127.0.0.1:8000/", server.url).replace("photo.jpg", str(photo))


def run_python(code: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    exec(code, {})
    return capsys.readouterr().out


def run_javascript(code: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> str:
    node = shutil.which("node")
    if node is None:
        pytest.skip("THE JAVASCRIPT EXAMPLE WAS NOT RUN: no node on this machine")
    script = folder / "example.mjs"
    script.write_text(code, encoding="utf-8")
    return subprocess.run([node, str(script)], capture_output=True, text=True, timeout=60, check=True).stdout


@pytest.mark.parametrize(("language", "run"), [("python", run_python), ("javascript", run_javascript)])
def test_the_examples_of_the_documentation_work(language, run, server, predictor, photos, tmp_path, capsys) -> None:
    photo = next(path for path in photos if path.suffix == ".jpg")
    printed = run(example(language, server, photo), tmp_path, capsys)
    (expected,) = predictor.predict([photo])
    label, _, probability = printed.strip().rpartition(" ")
    assert label == expected.label
    assert float(probability) == pytest.approx(expected.probability, rel=1e-5)


def test_the_documentation_lists_every_limit_with_its_default() -> None:
    rows = [line for line in DOCS.splitlines() if line.startswith("| `--max_")]
    for field in fields(Limits):
        (row,) = [row for row in rows if f"`--max_{field.name}`" in row]
        assert f" {field.default:g} " in row, field.name
