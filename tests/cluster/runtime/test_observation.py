"""What those who watch a pool are told."""

from __future__ import annotations

from affect_rl.trajectory import Output, Trajectory
from cluster.runtime.observation import lacking_evidence


def test_episodes_that_lack_evidence_are_counted() -> None:
    whole, lacking = (Trajectory("s", (), (), Output(""), degraded=degraded) for degraded in (False, True))
    assert lacking_evidence([]) == lacking_evidence([whole, whole]) == ""
    assert lacking_evidence([lacking, whole, lacking]).startswith("2 of 3 episodes lack evidence")
