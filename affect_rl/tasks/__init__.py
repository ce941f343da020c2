"""Tasks by name."""

from __future__ import annotations

from collections.abc import Mapping

from affect_rl.registry import resolve
from affect_rl.sample import LabelKind
from affect_rl.tasks.recognition import ClosedSet, OpenLabels, Sentiment
from affect_rl.tasks.task import Task, TaskSettings

TASKS: Mapping[str, type[Task]] = {"closed": ClosedSet, "open": OpenLabels, "sentiment": Sentiment}
"""Our own tasks; the first three are named like the kinds of labels that they are for."""


def task_class(name: str) -> type[Task]:
    """The task's class; without a name, that of closed sets, whose settings the other kinds of labels share."""
    return resolve(name or "closed", TASKS, Task, "task")  # type: ignore[type-abstract]


def make_task(settings: TaskSettings, label_kind: LabelKind) -> Task:
    """The task that the settings name, or the one for the dataset's kind of labels."""
    return task_class(settings.name or label_kind)(settings)


__all__ = ["TASKS", "Task", "TaskSettings", "make_task", "task_class"]
