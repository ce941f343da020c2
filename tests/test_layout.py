"""Which way imports run between the folders that docs/architecture.md lists: only downward."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BELOW = {
    "affect_rl": set(),
    "retrieval_service": {"affect_rl"},
    "learners": {"affect_rl"},
    "rollout_workers": {"affect_rl", "retrieval_service"},
    "cluster": {"affect_rl", "retrieval_service", "learners", "rollout_workers"},
}
"""By folder, the other folders that it may import."""
ENGINES = {
    "ray": {"retrieval_service", "learners", "rollout_workers", "cluster"},
    "vllm": {"rollout_workers"},
    "deepspeed": {"learners"},
    "faiss": {"retrieval_service"},
}
"""By library, who may import it: the mathematics knows no transport."""
NOBODY = {"benchmarks", "tests"}


def imports(folder: str) -> Iterator[tuple[str, str]]:
    """Files of a folder and the packages that they import, anywhere in them."""
    for path in sorted((ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                names = [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            for name in names:
                yield str(path.relative_to(ROOT)), name.partition(".")[0]


@pytest.mark.parametrize("folder", BELOW)
def test_imports_run_downward(folder: str) -> None:
    found = set(imports(folder))
    assert folder in {package for _, package in found}
    forbidden = (BELOW.keys() | NOBODY) - BELOW[folder] - {folder}
    forbidden |= {library for library, users in ENGINES.items() if folder not in users}
    assert {(path, package) for path, package in found if package in forbidden} == set()
