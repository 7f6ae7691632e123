"""What `topd watch` answers, and to whom."""

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from topd_ray.page.blocks import unpack
from topd_ray.page.live import LivePage, allowed_hosts, live_app


@pytest.fixture(scope="module")
def client(synthetic: Path) -> TestClient:
    app = live_app(LivePage(synthetic), hosts=allowed_hosts("127.0.0.1", 8765))
    return TestClient(app, base_url="http://127.0.0.1:8765")


def test_the_page_and_its_parts_are_served(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "data-live" in page.text
    assert 'id="block:' not in page.text
    assert page.headers["cache-control"] == "no-store"
    assert client.get("/values.json").json()["state"] == "finished"
    assert "d_ot" in unpack(client.get("/blocks/list/1").content)


@pytest.mark.parametrize(
    "path", ["/blocks/list/99", "/blocks/secrets/1", "/config.yaml", "/../config.yaml"]
)
def test_nothing_else_is(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "HEAD", "OPTIONS"])
def test_only_get_is_answered(client: TestClient, method: str) -> None:
    assert client.request(method, "/").status_code == 405


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8765", "127.0.0.1:1", "127.0.0.1", ""]
)
def test_a_request_for_another_host_is_refused(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 421


def test_loopback_has_three_names_and_all_interfaces_any_literal() -> None:
    assert allowed_hosts("127.0.0.1", 80) == {
        "127.0.0.1:80",
        "localhost:80",
        "[::1]:80",
    }
    assert "10.0.0.7:80" in allowed_hosts("10.0.0.7", 80)
    everywhere = allowed_hosts("0.0.0.0", 80)
    assert {"*", "localhost:80"} <= everywhere


def test_on_all_interfaces_a_name_that_is_not_ours_is_refused(synthetic: Path) -> None:
    app = live_app(LivePage(synthetic), hosts=allowed_hosts("0.0.0.0", 80))
    client = TestClient(app, base_url="http://192.168.7.7:80")
    assert client.get("/values.json", headers={"host": "192.168.7.7:80"}).is_success
    assert client.get("/", headers={"host": "evil.example:80"}).status_code == 421
