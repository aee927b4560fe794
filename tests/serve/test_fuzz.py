"""Five hundred requests that nobody in their right mind would send, made from the API's own description."""

from collections import Counter
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from support.planting import encoded, scene
from support.serving import Running, running, write_model

import headstart

schemathesis = pytest.importorskip("schemathesis", reason="NOT FUZZED: pip install schemathesis")

NUM_REQUESTS = 500
IMAGE = encoded(scene(0, 1), "PNG")


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Running]:
    model = write_model(tmp_path_factory.mktemp("model") / "model.safetensors")
    with running(headstart.load(model), megabytes=1, megapixels=1) as started:
        yield started


@pytest.mark.slow
def test_five_hundred_malformed_requests_leave_it_healthy(server) -> None:
    # no schema can say which bytes are an image and which parts a form has besides
    config = schemathesis.Config.from_dict(
        {"checks": {"positive_data_acceptance": {"expected-statuses": ["2xx", "400", "422"]}}}
    )
    schema = schemathesis.openapi.from_url(server.url + "openapi.json", config=config)
    seen: Counter[int] = Counter()

    def attack(path: str, method: str, count: int, mode: object) -> None:
        @settings(max_examples=count, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                  suppress_health_check=list(HealthCheck))  # fmt: skip
        @given(case=schema[path][method].as_strategy(generation_mode=mode))
        def one(case: object) -> None:
            reply = case.call()
            seen[reply.status_code] += 1
            case.validate_response(reply)

        one()

    attack("/predict", "POST", 400, schemathesis.GenerationMode.NEGATIVE)
    attack("/predict", "POST", 100, schemathesis.GenerationMode.POSITIVE)
    attack("/health", "GET", 1, schemathesis.GenerationMode.POSITIVE)
    attack("/model", "GET", 1, schemathesis.GenerationMode.POSITIVE)
    assert sum(seen.values()) >= NUM_REQUESTS, seen
    assert seen[200] > 0
    assert seen[400] > 0
    assert seen[422] > 0
    print(seen)
    health = server.ask("GET", "/health").json
    assert (health["status"], health["waiting"], health["bytes"]) == ("ok", 0, 0)
    assert server.predict(IMAGE).status == 200
