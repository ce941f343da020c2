"""What an episode is answered: exclusion, deduplication, perceptual neighbours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from affect_rl.config.services import RetrievalConfig
from affect_rl.errors import AffectError
from affect_rl.evidence import GROUPS, CognitiveResult, Exclusion, Support, render_evidence
from affect_rl.sample import AffectSample
from retrieval_service.encoder import TextEncoder
from retrieval_service.index import IndexDirectory, build_index
from retrieval_service.retriever import LocalRetriever

NOBODY = Exclusion(id="", clip="", dialogue=None, speaker="")
QUERIES = {"supportive": "a soft voice", "confusing": "a soft voice in winter", "countering": "a loud red bird"}


@pytest.fixture(scope="module")
def retriever(evidence_index: Path) -> LocalRetriever:
    return LocalRetriever(evidence_index, RetrievalConfig())


def ask(
    retriever: LocalRetriever, queries: dict[str, str], exclusion: Exclusion = NOBODY, k: int = 3
) -> CognitiveResult:
    return asyncio.run(retriever.cognitive(queries, k, exclusion))


def neighbours(retriever: LocalRetriever, sample: AffectSample, exclusion: Exclusion = NOBODY) -> Support:
    return asyncio.run(retriever.perceptual(sample.audio, sample.video, exclusion))


def test_evidence_is_one_line_of_description_or_transcript_and_labels(evidence_library: list[AffectSample]) -> None:
    sample = replace(evidence_library[1], description="glass harbour,\n soft voice", labels=("sadness", "fear"))
    assert render_evidence(sample) == "glass harbour, soft voice: sadness, fear"
    assert render_evidence(replace(sample, description="", text="oh  no")) == '"oh no": sadness, fear'


def test_each_group_gets_its_k_best_first_with_their_labels(
    retriever: LocalRetriever, evidence_library: list[AffectSample]
) -> None:
    samples = {sample.id: sample for sample in evidence_library}
    answer = ask(retriever, QUERIES)
    assert tuple(answer.groups) == GROUPS and not answer.degraded
    for found in answer.groups.values():
        assert len(found) == 3
        assert sorted(found, key=lambda evidence: -evidence.score) == list(found)
        for evidence in found:
            assert evidence.text == render_evidence(samples[evidence.id])
            assert evidence.labels == samples[evidence.id].labels


def test_the_same_query_in_every_group_gives_disjoint_evidence(retriever: LocalRetriever) -> None:
    answer = ask(retriever, dict.fromkeys(GROUPS, "a soft voice"))
    found = [evidence for group in answer.groups.values() for evidence in group]
    assert len({evidence.id for evidence in found}) == len({evidence.text for evidence in found}) == 9


def test_equal_texts_are_shown_once(retriever: LocalRetriever) -> None:
    found = ask(retriever, {"supportive": "the same words"}).groups["supportive"]
    assert sum("the same words" in evidence.text for evidence in found) == len({e.text for e in found}) == 3


@pytest.mark.parametrize(
    ("exclusion", "shares"),
    [
        (lambda s: replace(NOBODY, id=s.id), lambda s, other: s.id == other.id),
        (lambda s: replace(NOBODY, clip=s.clip), lambda s, other: s.clip == other.clip),
        (lambda s: replace(NOBODY, dialogue=s.dialogue), lambda s, other: s.dialogue == other.dialogue),
        (lambda s: replace(NOBODY, speaker=s.speaker), lambda s, other: s.speaker == other.speaker),
    ],
    ids=["id", "clip", "dialogue", "speaker"],
)
def test_a_samples_own_surroundings_are_never_retrieved(
    exclusion: Callable[[AffectSample], Exclusion],
    shares: Callable[[AffectSample, AffectSample], bool],
    evidence_library: list[AffectSample],
    evidence_index: Path,
) -> None:
    everything = len(evidence_library)
    whole = LocalRetriever(evidence_index, RetrievalConfig(perceptual_k=everything))
    samples = {sample.id: sample for sample in evidence_library}
    sample = evidence_library[7]
    query = {"supportive": render_evidence(sample)}
    assert sample.id in {e.id for e in ask(whole, query, k=everything).groups["supportive"]}

    texts = {render_evidence(other) for other in evidence_library if not shares(sample, other)}
    found = ask(whole, query, exclusion(sample), k=everything).groups["supportive"]
    assert not any(shares(sample, samples[e.id]) for e in found)
    assert {e.text for e in found} == texts  # and nobody else is left out

    with_both = {s.id for s in evidence_library if s.audio is not None and s.video is not None}
    near = neighbours(whole, sample, exclusion(sample))
    assert set(near.ids) == {i for i in with_both if not shares(sample, samples[i])}


def test_unknown_speakers_and_missing_dialogues_exclude_nobody(
    retriever: LocalRetriever, evidence_library: list[AffectSample]
) -> None:
    stranger = Exclusion(id="elsewhere", clip="elsewhere", dialogue=None, speaker="")
    assert evidence_library[0].speaker == "" and evidence_library[0].dialogue is None
    assert ask(retriever, QUERIES, stranger) == ask(retriever, QUERIES)


def test_an_exhausted_library_gives_what_there_is(evidence_library: list[AffectSample], tmp_path: Path) -> None:
    path = build_index(evidence_library[1:5], tmp_path / "index", RetrievalConfig())
    answer = ask(LocalRetriever(path, RetrievalConfig()), QUERIES)
    assert sum(map(len, answer.groups.values())) == len({render_evidence(s) for s in evidence_library[1:5]})


def test_oversampling_changes_nothing(evidence_index: Path, evidence_library: list[AffectSample]) -> None:
    lean, rich = (LocalRetriever(evidence_index, RetrievalConfig(oversample=n)) for n in (1, 40))
    for sample in evidence_library[:10]:
        queries = dict.fromkeys(GROUPS, render_evidence(sample))
        assert ask(lean, queries, Exclusion.of(sample)) == ask(rich, queries, Exclusion.of(sample))


def standardised(rows: list[np.ndarray]) -> np.ndarray:
    averages = np.stack([x.mean(axis=0) for x in rows]).astype(np.float64)
    standard = (averages - averages.mean(axis=0)) / averages.std(axis=0)
    return standard / np.linalg.norm(standard, axis=1, keepdims=True)


def test_neighbours_are_nearest_by_mean_cosine_similarity(
    retriever: LocalRetriever, evidence_library: list[AffectSample]
) -> None:
    similarity = np.zeros((2, len(evidence_library)))
    for similar, modality in zip(similarity, ("audio", "video"), strict=True):
        have = [i for i, s in enumerate(evidence_library) if getattr(s, modality) is not None]
        vectors = standardised([getattr(evidence_library[i], modality) for i in have])
        similar[:] = -np.inf
        similar[have] = vectors @ vectors[have.index(7)]

    def best(similar: np.ndarray) -> tuple[str, ...]:
        return tuple(evidence_library[i].id for i in np.argsort(-similar)[:3])

    sample = evidence_library[7]
    assert neighbours(retriever, sample).ids == best(similarity.mean(axis=0))
    assert neighbours(retriever, replace(sample, video=None)).ids == best(similarity[0])
    assert neighbours(retriever, replace(sample, audio=None)).ids == best(similarity[1])


def test_support_brings_the_neighbours_frames(retriever: LocalRetriever, evidence_library: list[AffectSample]) -> None:
    samples = {sample.id: sample for sample in evidence_library}
    support = neighbours(retriever, replace(evidence_library[7], video=None))
    near = [samples[i] for i in support.ids]
    np.testing.assert_array_equal(support.audio, np.concatenate([s.audio for s in near]))
    videos = [s.video for s in near if s.video is not None]
    np.testing.assert_array_equal(support.video, np.concatenate(videos))
    assert support.labels == tuple(s.labels for s in near)


def test_no_features_give_no_support(
    retriever: LocalRetriever, evidence_index: Path, evidence_library: list[AffectSample]
) -> None:
    sample = evidence_library[7]
    assert neighbours(retriever, replace(sample, audio=None, video=None)).ids == ()
    assert neighbours(retriever, replace(sample, audio=np.empty((0, 5), np.float32), video=None)).ids == ()
    assert neighbours(LocalRetriever(evidence_index, RetrievalConfig(perceptual_k=0)), sample).ids == ()


def test_features_of_another_width_are_named(retriever: LocalRetriever, evidence_library: list[AffectSample]) -> None:
    odd = replace(evidence_library[7], audio=np.zeros((2, 6), np.float32))
    with pytest.raises(AffectError, match=r"audio features of shape \(2, 6\) cannot be looked up.*\[T, 5\]"):
        neighbours(retriever, odd)


def test_text_vectors_are_those_of_the_encoder(evidence_index: Path, evidence_library: list[AffectSample]) -> None:
    vectors = np.load(IndexDirectory.open(evidence_index, RetrievalConfig()).path / "text.npy")
    expected = TextEncoder(RetrievalConfig()).encode_passages([render_evidence(s) for s in evidence_library])
    # Not equal to the bit: the index may be older than what other tests have loaded and set in this process.
    np.testing.assert_allclose(vectors, expected, rtol=0, atol=1e-6)
