"""Emotion words: one written form for each, the emotion wheel, and the scores of an answer.

The wheel puts about two hundred English emotion words, each with its written forms, into ten clusters.
Six are the basic emotions of Ekman (1992, "An argument for basic emotions"); anticipation and the
order of mild to strong words within a cluster follow Plutchik (1980, "Emotion: a psychoevolutionary
synthesis"); love and most assignments of secondary words follow the tree of Parrott (2001, "Emotions
in social psychology"), except that disgust stands alone; calm is the pleasant, low-arousal quarter of
Russell (1980, "A circumplex model of affect"); neutral is the absence of emotion.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection, Iterable
from functools import lru_cache

_WHEEL = {
    "joy": """
        joy: joyful, joyfully, joyous, enjoyment; happy: happiness, happily, happier; glad: gladness, gladly
        cheerful: cheerfulness, cheerfully, cheery; pleased: pleasure, pleasant; delighted: delight, delightful
        amused: amusement, amusing; elated: elation; ecstatic: ecstasy; euphoric: euphoria; jubilant: jubilation
        excited: excitement, excitedly; enthusiastic: enthusiasm, enthusiastically; thrilled: thrill; zealous: zeal
        exhilarated: exhilaration; gleeful: glee, gleefully; merry: merriment; jolly: jolliness; blissful: bliss
        proud: pride, proudly; triumphant: triumph, triumphantly; satisfied: satisfaction; optimistic: optimism
        relieved: relief; playful: playfulness, playfully; overjoyed; radiant; upbeat; cheered; festive; exultant
    """,
    "love": """
        love: loving, lovingly; affectionate: affection, affectionately; tender: tenderness, tenderly
        fond: fondness, fondly; caring; compassionate: compassion, compassionately; adoring: adoration
        admiring: admiration; grateful: gratitude, gratefully; thankful: thankfulness, thankfully
        trusting: trust; longing; infatuated: infatuation; passionate: passion, passionately; romantic: romance
        sympathetic: sympathy; warm: warmth, warmly; devoted: devotion; desire: desirous; touched; moved
    """,
    "calm": """
        calm: calmness, calmly; serene: serenity; peaceful: peace, peacefully; relaxed: relaxation
        content: contentment, contented; tranquil: tranquility; composed: composure; restful; soothed; at ease
    """,
    "anticipation": """
        anticipation: anticipating; interested: interest; curious: curiosity, curiously; eager: eagerness, eagerly
        hopeful: hope, hopefully; expectant: expectation, expectantly; attentive: attention, attentively
        vigilant: vigilance; intrigued; fascinated: fascination; determined: determination; inspired: inspiration
    """,
    "surprise": """
        surprise: surprised, surprising; amazed: amazement; astonished: astonishment; astounded; stunned
        startled; shocked: shock; speechless; disbelief: disbelieving; confused: confusion; puzzled: puzzlement
        perplexed: perplexity; bewildered: bewilderment; incredulous: incredulity; dumbfounded; awe: awed
    """,
    "sadness": """
        sad: sadness, sadly, sadder; unhappy: unhappiness, unhappily; sorrow: sorrowful, sorrowfully
        grief: grieving; miserable: misery; gloomy: gloom, gloomily; depressed: depression; dejected: dejection
        melancholy: melancholic; disappointed: disappointment; dismayed: dismay; discouraged: discouragement
        hopeless: hopelessness; despair: despairing; desperate: desperation; lonely: loneliness; heartbroken
        hurt; upset; regretful: regret, regretfully; remorseful: remorse; guilty: guilt; ashamed: shame
        embarrassed: embarrassment; humiliated: humiliation; pity: pitying; helpless: helplessness; homesick
        pensive: pensiveness; nostalgic: nostalgia; mournful: mourning; tearful; weary: weariness; dispirited
        neglected; rejected: rejection; resigned: resignation; anguished: anguish; suffering; blue; downcast
    """,
    "fear": """
        fear: fearful, fearfully; afraid; scared; frightened: fright; terrified: terror; panicked: panic
        horrified: horror; anxious: anxiety, anxiously; nervous: nervousness, nervously; worried: worry
        apprehensive: apprehension; uneasy: uneasiness, unease, uneasily; tense: tension; stressed: stress
        distressed: distress; dread: dreading; alarmed: alarm; hesitant: hesitation, hesitantly; insecure: insecurity
        timid: timidity; overwhelmed; hysterical: hysteria; threatened; petrified; suspicious: suspicion; shy: shyness
    """,
    "anger": """
        anger: angry, angrily, angrier; mad; furious: fury, furiously; enraged: rage; outraged: outrage
        annoyed: annoyance, annoying; irritated: irritation; frustrated: frustration; exasperated: exasperation
        aggravated: aggravation; agitated: agitation; grumpy: grumpiness; grouchy; cross; resentful: resentment
        hostile: hostility; bitter: bitterness, bitterly; hateful: hate, hatred; aggressive: aggression
        indignant: indignation; jealous: jealousy; envious: envy; impatient: impatience, impatiently; livid; irate
        vengeful: vengefulness; spiteful: spite; offended; defiant: defiance; dissatisfied: dissatisfaction
    """,
    "disgust": """
        disgust: disgusted, disgusting; revolted: revulsion; repulsed: repulsion; loathing; contempt: contemptuous
        scornful: scorn, scornfully; disdain: disdainful; nauseated: nausea; appalled; aversion; sickened; repelled
        sarcastic: sarcasm; mocking: mockery; distaste: distasteful; bored: boredom; dislike
    """,
    "neutral": """
        neutral: neutrality, neutrally; unemotional; indifferent: indifference; impassive; matter of fact; no emotion
        expressionless; emotionless; ordinary; none
    """,
}


def _tables() -> tuple[dict[str, str], dict[str, str]]:
    """Written form to word, and word to cluster."""
    words: dict[str, str] = {}
    cluster_of: dict[str, str] = {}
    for cluster, entries in _WHEEL.items():
        for entry in re.split(r"[;\n]", entries.strip()):
            word, _, forms = entry.partition(":")
            word = word.strip()
            cluster_of[word] = cluster
            words |= {form.strip(): word for form in forms.split(",") if form.strip()}
    return words, cluster_of


_WORD_OF_FORM, CLUSTER_OF_WORD = _tables()
CLUSTERS = tuple(_WHEEL)
"""Names of the wheel's clusters."""


@lru_cache(maxsize=65536)
def normalise(label: str) -> str:
    """One written form of a label: case, punctuation and spaces evened out, inflections looked up.

    Inflections come from the wheel's table alone (``Happily!`` and ``happiness`` are ``happy``), and whole
    labels are looked up: ``unhappy`` and ``not happy`` are not ``happy``.
    """
    plain = " ".join(re.findall(r"[^\W_]+", unicodedata.normalize("NFKC", label).casefold()))
    return _WORD_OF_FORM.get(plain, plain)


def clusters(labels: Iterable[str]) -> frozenset[str]:
    """The clusters of the wheel that the labels fall into; words outside the wheel fall into none."""
    words = map(normalise, labels)
    return frozenset(CLUSTER_OF_WORD[word] for word in words if word in CLUSTER_OF_WORD)


def wheel_f1(predicted: Collection[str], true: Collection[str]) -> float:
    """F1 between the clusters of an answer and those of the truth, in [0, 1]; the score of open labels.

    A word outside the wheel is a cluster of its own: in an answer it is wrong unless the truth has the
    same word. Each further cluster that is not in the truth lowers the score, so listing everything does
    not pay. An empty answer scores 0.

    Raises:
        ValueError: no true labels.
    """
    answer, truth = _meanings(predicted), _meanings(true)
    if not truth:
        raise ValueError("no true labels to score against")
    return 2 * len(answer & truth) / (len(answer) + len(truth))


def exact_score(predicted: Collection[str], true: Collection[str], candidates: Collection[str]) -> float:
    """Share of the answer's labels that are right, in [0, 1]; the score of closed label sets.

    The true labels are alternatives (a tie among raters), so naming one of them scores 1. It is the
    precision of the answer and not its F1, because the expected precision of several labels is the mean
    of their chances: no hedge beats its most probable label. A label outside `candidates` is wrong
    (empty candidates: any word may be right), an empty answer scores 0.

    Raises:
        ValueError: no true labels.
    """
    if not true:
        raise ValueError("no true labels to score against")
    answer, right = {normalise(label) for label in predicted}, {normalise(label) for label in true}
    if candidates:
        right &= {normalise(label) for label in candidates}
    return len(answer & right) / len(answer) if answer else 0.0


def _meanings(labels: Iterable[str]) -> set[str]:
    """Clusters of the labels the wheel knows, marked as such, and the other labels themselves."""
    words = {word for word in map(normalise, labels) if word}
    return {f"cluster {CLUSTER_OF_WORD[word]}" if word in CLUSTER_OF_WORD else f"word {word}" for word in words}
