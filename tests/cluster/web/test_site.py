"""What every page is served with: nothing of a run can become markup, and no foreign site can ask."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urljoin

import pytest
from fastapi.testclient import TestClient

from affect_rl.errors import AffectError
from cluster.web import site
from cluster.web.site import is_loopback, listen, make_site

WEB = Path(site.__file__).parent
PAGE = WEB / "watch" / "page"
PAGES = [PAGE, WEB / "ask" / "page"]
SCRIPTS = sorted(WEB.rglob("*.js"))


@pytest.fixture
def client() -> TestClient:
    return TestClient(make_site(PAGE, "127.0.0.1"), base_url="http://127.0.0.1")


@pytest.mark.parametrize("path", ["/", "/palette.css", "/shared/dom.js", "/page/main.js", "/nothing-here"])
def test_every_answer_forbids_what_is_not_in_the_package(client: TestClient, path: str) -> None:
    answer = client.get(path)
    policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == "'none'"
    assert {policy[kind] for kind in ("script-src", "style-src", "connect-src", "img-src")} == {"'self'"}
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize("folder", PAGES, ids=lambda folder: folder.parent.name)
def test_a_page_names_files_that_are_there_and_no_other_host(folder: Path) -> None:
    client = TestClient(make_site(folder, "127.0.0.1"), base_url="http://127.0.0.1")
    page = client.get("/").text
    named = set(re.findall(r'(?:src|href)="([^"#]+)"', page)) - {"docs"}  # which only the API has
    assert named and all(client.get(f"/{name}").status_code == 200 for name in named)
    scripts = [script for script in SCRIPTS if script.parent in (folder, WEB / "shared")]
    for script in scripts:
        address = f"/{script.parent.name}/{script.name}"
        for name in re.findall(r'from "([^"]+)"', client.get(address).text):
            assert client.get(urljoin(address, name)).status_code == 200
    sources = [page, *(file.read_text() for file in [*scripts, *WEB.rglob("*.css")])]
    assert not any("://" in text.replace("http://www.w3.org/2000/svg", "") for text in sources)


def test_scripts_never_make_markup_of_text() -> None:
    assert len(SCRIPTS) > 5
    forbidden = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b|Function\(")
    assert not [script for script in SCRIPTS if forbidden.search(script.read_text())]


def test_a_name_that_is_not_of_this_machine_is_refused_only_where_no_other_machine_may_ask() -> None:
    foreign = "http://evil.example"
    assert TestClient(make_site(PAGE, "127.0.0.1"), base_url=foreign).get("/").status_code == 400
    assert TestClient(make_site(PAGE, "0.0.0.0"), base_url=foreign).get("/").status_code == 200


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.7", False), ("me", False)],
)
def test_which_addresses_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


def test_a_port_that_somebody_has_is_named_with_the_fix() -> None:
    with (
        listen("127.0.0.1", 0) as taken,
        pytest.raises(AffectError, match=r"127\.0\.0\.1:\d+: cannot .* another --port"),
    ):
        listen("127.0.0.1", taken.getsockname()[1])
