"""Malformed requests, generated from the API's own OpenAPI document."""

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from support.planting import encoded, scene
from support.serving import Running, running, write_model

import headstart

schemathesis = pytest.importorskip("schemathesis", reason="NOT FUZZED: pip install schemathesis")

IMAGE = encoded(scene(0, 1), "PNG")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Running]:
    model = write_model(tmp_path_factory.mktemp("model") / "model.safetensors")
    with running(headstart.load(model), megabytes=1, megapixels=1) as started:
        yield started


@pytest.mark.slow
@pytest.mark.parametrize("num_requests", [50, pytest.param(500, marks=pytest.mark.extended)])
def test_malformed_requests_are_answered_as_documented_and_leave_the_server_healthy(num_requests, server) -> None:
    # a schema cannot define which bytes are an image and which other parts a form may have
    config = schemathesis.Config.from_dict(
        {"checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "400", "422"]}}}
    )
    schema = schemathesis.openapi.from_url(server.url + "openapi.json", config=config)
    seen: Counter[int] = Counter()

    def attack(path: str, method: str, count: int, mode: object) -> None:
        @settings(
            max_examples=count,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=schema[path][method].as_strategy(generation_mode=mode))
        def one(case: object) -> None:
            reply = case.call()
            seen[reply.status_code] += 1
            case.validate_response(reply)

        one()

    attack("/predict", "POST", num_requests * 4 // 5, schemathesis.GenerationMode.NEGATIVE)
    attack("/predict", "POST", num_requests // 5, schemathesis.GenerationMode.POSITIVE)
    attack("/health", "GET", 1, schemathesis.GenerationMode.POSITIVE)
    attack("/model", "GET", 1, schemathesis.GenerationMode.POSITIVE)
    assert sum(seen.values()) >= num_requests, seen
    assert seen[200] > 0
    assert seen[400] > 0
    assert seen[422] > 0
    print(seen)
    health = server.ask("GET", "/health").json
    assert (health["status"], health["waiting"], health["bytes"]) == ("ok", 0, 0)
    assert server.predict(IMAGE).status == 200
