"""The samples, the index and the tokenizer of a small world."""

from __future__ import annotations

import pytest
from team_cases import RETRIEVAL, WORLD, make_team

from affect_rl.evidence import render_evidence
from affect_rl.policy.tokens import train_tokenizer
from affect_rl.sample import AffectSample
from affect_rl.team.prompts import Prompts, template_texts
from retrieval_service.index import build_index
from retrieval_service.retriever import LocalRetriever


@pytest.fixture(scope="session")
def world() -> list[AffectSample]:
    """Its training samples."""
    return [s for s in WORLD if s.split == "train"]


@pytest.fixture(scope="session")
def retriever(tmp_path_factory: pytest.TempPathFactory) -> LocalRetriever:
    library = [s for s in WORLD if s.split == "library"]
    return LocalRetriever(build_index(library, tmp_path_factory.mktemp("library") / "index", RETRIEVAL), RETRIEVAL)


@pytest.fixture(scope="session")
def prompts() -> Prompts:
    texts = [text for s in WORLD for text in (s.text, render_evidence(s))]
    tokenizer = train_tokenizer([*texts, *template_texts(), *make_team().texts()], 800)
    return Prompts(tokenizer, soft_tokens=4, context=512, evidence_tokens=32)
