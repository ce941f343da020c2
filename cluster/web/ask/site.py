"""The page beside the API that it asks."""

from __future__ import annotations

from pathlib import Path

from fastapi import FastAPI

from cluster.web.site import POLICY, add_page


def add_ask_page(api: FastAPI) -> None:
    """Serve the page at ``/`` of an API. It may be reached under any name: what the page shows, the token guards."""
    add_page(api, Path(__file__).parent / "page", f"{POLICY}; media-src blob:")  # what is recorded can be played
