"""NATS subjects. Every name that goes into one is an identifier (see model.ids)."""

from __future__ import annotations

from fallow.model.ids import ClientId, JobId, NodeId

POOL = "fw.pool"
"""Requests to any coordinator (queue group COORDINATORS)."""
COORDINATORS = "coordinators"
SIDE_DOOR = "coordinators-2"
"""The same once more, while a coordinator is silent to which the message server still hands questions."""
BEAT = "fw.beat"
"""Heartbeats of agents; the leader listens."""
LEADER = "fw.leader"
"""Requests about nodes, passed on by the coordinator that was asked."""
NODES = "fw.nodes"
"""To every agent."""
OWNERS = "fw.owners"
"""Between coordinators."""
LOGS_ALL = "fw.log.*"


def echo(name: str) -> str:
    """From a coordinator to itself."""
    return f"fw.echo.{name}"


def job(job_id: JobId) -> str:
    """To the owner of a job, from its client and from agents."""
    return f"fw.job.{job_id}"


def node(node_id: NodeId) -> str:
    """To one agent."""
    return f"fw.node.{node_id}"


def calls(node_id: NodeId) -> str:
    """To one agent, from clients: single calls for slots that wait for them."""
    return f"fw.calls.{node_id}"


def client(client_id: ClientId) -> str:
    """To one client: answers of calls, hints."""
    return f"fw.client.{client_id}"


def log(job_id: JobId) -> str:
    """Printed output of a job's tasks, from agents to whoever follows."""
    return f"fw.log.{job_id}"
