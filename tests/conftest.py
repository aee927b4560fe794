"""What all tests share: one thread, no network, tiny drawn images, golden files."""

import ipaddress
import os
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from PIL import Image
from support import GOLDEN
from support.images import CLASSES, draw_folder
from support.images import draw as draw_image_of

from headstart.cli.main import prepare_environment
from headstart.cli.output import printed_messages
from headstart.messages import LOG

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; inherited by the processes that tests start
prepare_environment()

# the same examples every time; the tests share two cores with others, so no example has a deadline
settings.register_profile(
    "repeatable",
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("repeatable")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="rewrite tests/golden instead of comparing with it")


@pytest.fixture(autouse=True)
def messages_on_screen() -> Iterator[None]:
    """Messages are printed as on the command line, so that a test of a run in this process can read them. Tests of the
    Python interface, which prints nothing, replace this fixture."""
    with printed_messages():
        LOG.propagate = True  # for caplog
        yield


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tests that need no torch do not import it; OMP_NUM_THREADS covers a first import inside a test."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


class NetworkIsForbidden(OSError):
    """An OSError, so that the code under test sees what it would see with the cable pulled out."""


@pytest.fixture(autouse=True)
def network_attempts(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Hosts beyond this machine that the test tried to reach. None is reached, and the test fails unless it
    expects the attempt and clears the list."""
    attempts: list[str] = []

    def guarded(original: Callable[..., Any], host_of: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            host = host_of(*args, **kwargs)
            if not _is_local(host):
                attempts.append(str(host))
                raise NetworkIsForbidden(f"a test tried to reach {host}")
            return original(*args, **kwargs)

        return call

    def host_of_address(address: Any) -> Any:
        return address[0] if isinstance(address, tuple) else None  # a path: a socket of this machine

    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(
            socket.socket,
            name,
            guarded(getattr(socket.socket, name), lambda _, address: host_of_address(address)),
        )
    monkeypatch.setattr(
        socket, "create_connection", guarded(socket.create_connection, lambda address, *_, **__: address[0])
    )
    monkeypatch.setattr(socket, "getaddrinfo", guarded(socket.getaddrinfo, lambda host, *_, **__: host))
    for name in ("http_proxy", "https_proxy", "all_proxy"):  # a local proxy leads out as well
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    yield attempts
    assert not attempts, f"the test tried to reach {attempts}"


def _is_local(host: Any) -> bool:
    text = host.decode() if isinstance(host, bytes) else host
    if text is None or text in ("", "localhost", "0.0.0.0", "::", socket.gethostname()):
        return True
    try:
        return ipaddress.ip_address(text).is_loopback
    except ValueError:
        return False


@pytest.fixture
def image_folder(tmp_path: Path) -> Callable[..., Path]:
    """image_folder(train=12, val=5): a new data set of so many images per class and split below tmp_path.

    val=None: class folders only, with `train` images each. Also name= of the folder and classes=.
    """

    def draw(*, train: int = 4, val: int | None = None, name: str = "images", classes: Sequence[str] = CLASSES) -> Path:
        return draw_folder(tmp_path / name, train=train, val=val, classes=classes)

    return draw


@pytest.fixture
def draw_image() -> Callable[..., Image.Image]:
    """draw_image(code, number): one 64x48 RGB image of the class with that code."""
    return draw_image_of


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """3 classes, 12 training and 5 validation images each. Shared: do not write in it."""
    return draw_folder(tmp_path_factory.mktemp("tiny") / "data", train=12, val=5)


@pytest.fixture(scope="session")
def bf16_run(tiny_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on tiny_data: a frozen head trained and evaluated in bf16. Shared: do not write in it."""
    from support.runs import small

    from headstart.training.run import run

    out = tmp_path_factory.mktemp("runs") / "bf16"
    return run(small(tiny_data, out, strategy="frozen_head", train={"epochs": 1}, runtime={"mixed_precision": "bf16"}))


@pytest.fixture
def check_golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """check_golden(name, text): equal to tests/golden/<name>, which --update-golden rewrites."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert text == path.read_text(encoding="utf-8"), f"{path} differs; --update-golden rewrites it"

    return check


@pytest.fixture(scope="session")
def ants_and_bees() -> Path:
    """The tutorials' photographs, which are never in the repository."""
    folder = os.environ.get("HEADSTART_TEST_DATA")
    if folder is None:
        pytest.skip("NOT TESTED ON PHOTOGRAPHS: set HEADSTART_TEST_DATA to a folder with hymenoptera_data")
    path = Path(folder) / "hymenoptera_data"
    assert path.is_dir(), f"HEADSTART_TEST_DATA is set and {path} is not there"
    return path
