"""Dashboards: Grafana's own model reads them whole, and they ask for names that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from cluster.cli.main import app
from cluster.watching.dashboards import DASHBOARDS, Dashboard, grafana
from cluster.watching.names import EXPORTED, LIVE, STEP, WARM_START


@pytest.mark.parametrize("page", DASHBOARDS, ids=lambda page: page.name)
def test_grafanas_model_reads_a_dashboard_and_loses_nothing(page: Dashboard) -> None:
    model = pytest.importorskip("grafana_foundation_sdk.models.dashboard", reason="grafana-foundation-sdk is absent")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins

    register_default_plugins()
    written = json.loads(json.dumps(grafana(page)))
    read = json.loads(JSONEncoder().encode(model.Dashboard.from_json(written)))
    assert _within(written, read) == []


def _within(written: object, read: object, path: str = "") -> list[str]:
    """Where `read` lacks something that was written; the model may add its defaults."""
    if isinstance(written, dict) and isinstance(read, dict):
        found = [_within(value, read.get(key), f"{path}.{key}") for key, value in written.items()]
    elif isinstance(written, list) and isinstance(read, list) and len(written) == len(read):
        found = [_within(w, r, f"{path}[{i}]") for i, (w, r) in enumerate(zip(written, read, strict=True))]
    else:
        return [] if written == read else [path]
    return [place for places in found for place in places]


def test_panels_ask_for_names_of_the_table_and_every_one_is_shown() -> None:
    queries = [query for page in DASHBOARDS for panel in page.panels for query in panel.queries.values()]
    asked = {name for query in queries for name in re.findall(rf"{EXPORTED}(affect_\w+)", query)}
    assert asked <= {*STEP.values(), *WARM_START.values(), *LIVE}
    assert {*STEP.values(), *WARM_START.values(), *LIVE} - asked == set()


def test_engines_of_a_run_are_compared_with_the_weights_of_that_run() -> None:
    (panel,) = (panel for page in DASHBOARDS for panel in page.panels if panel.title.startswith("Engines behind"))
    (query,) = panel.queries.values()
    assert query.startswith("max by (run) (") and ") - on (run) group_right () " in query


def test_panels_do_not_overlap_and_are_told_apart() -> None:
    for page in DASHBOARDS:
        panels = grafana(page)["panels"]
        places = {(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}
        assert len(places) == len({p["id"] for p in panels}) == len({p["title"] for p in panels}) == len(panels)


def test_install_writes_what_grafana_and_prometheus_read(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["dashboards", "install", str(tmp_path), "--ray-dir", "/somewhere"])
    assert result.exit_code == 0
    pages = [json.loads(path.read_text()) for path in sorted(tmp_path.glob("*.json"))]
    assert {page["uid"] for page in pages} == {f"affect-{page.name}" for page in DASHBOARDS}
    (job,) = yaml.safe_load((tmp_path / "prometheus.yml").read_text())["scrape_configs"]
    assert job["file_sd_configs"] == [{"files": ["/somewhere/session_latest/prom_metrics_service_discovery.json"]}]
