"""Fixtures of all tests."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import settings

from affect_rl.config.services import RetrievalConfig
from affect_rl.sample import AffectSample

# No test fails for being slow: the machine may be busy, and a first call may load tables.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """System tests first: run side by side, the short ones then fill the gaps that the long ones leave."""
    items.sort(key=lambda item: "system" not in item.path.parts)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real datasets beside the repository; tests that read them are skipped where there are none."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip("no ../shared/data beside the repository")
    return path


@pytest.fixture(scope="session")
def evidence_library() -> list[AffectSample]:
    """240 utterances of 8 speakers, three to a clip, six to a dialogue; some texts repeat, some features are absent."""
    chance = random.Random(7)
    features = np.random.default_rng(7)
    words = "glass harbour soft voice loud red slow winter rope stone bird silver".split()
    return [
        AffectSample(
            id=f"utterance-{i}",
            dataset="handmade",
            split="library" if i % 2 else "train",
            clip=f"clip-{i // 3}",
            dialogue=f"dialogue-{i // 6}" if i % 30 else None,
            speaker=f"speaker-{i % 8}" if i % 20 else "",
            text="what was said",
            labels=(chance.choice(["joy", "sadness", "anger"]),),
            label_kind="closed",
            description=" ".join(chance.choices(words, k=3)) if i % 10 else "the same words",
            audio=None if i % 4 == 0 else features.standard_normal((1 + i % 3, 5), dtype=np.float32),
            video=None if i % 5 == 0 else features.standard_normal((2, 7), dtype=np.float32),
        )
        for i in range(240)
    ]


@pytest.fixture(scope="session")
def evidence_index(evidence_library: list[AffectSample], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Their index, built with the default settings."""
    from retrieval_service.index import build_index

    return build_index(evidence_library, tmp_path_factory.mktemp("evidence") / "index", RetrievalConfig())
