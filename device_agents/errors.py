"""The two ways in which the agent says no.

AgentError ends a verb: one line on stderr and an exit status. RunFailedError ends one run and
becomes the RunError of its record. Anything else that is raised is a bug.
"""

from __future__ import annotations

from device_agents.contract import RunError


class AgentError(Exception):
    """A verb that cannot be done. exit_status: 1 a check failed, 2 usage."""

    def __init__(self, fact: str, next_step: str, exit_status: int = 2) -> None:
        self.fact = " ".join(fact.split())
        self.next_step = next_step
        self.exit_status = exit_status
        super().__init__(f"{self.fact}. Next: {next_step}")


class RunFailedError(Exception):
    """A run that gives no latency. kind: one of RunError's."""

    def __init__(self, kind: str, fact: str, next_step: str) -> None:
        # One line and bounded: a runtime's message may hold a whole graph.
        self.error = RunError(kind, " ".join(fact.split())[:500], next_step)
        super().__init__(self.error.fact)


class StoppedError(Exception):
    """The worker was asked to end while it waited for something."""
