"""A DAG as plain data and one writer of lines, checked against `condor_dag_checker` by tests (docs/decisions/001).

Only what segue's workflows use, in the DAG language of HTCondor 23.9.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Script:
    """A program that DAGMan runs on the access point. Macros such as $DAG_STATUS must be whole words of ``arguments``."""

    path: str
    arguments: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.path, *self.arguments))


@dataclass(frozen=True)
class Node:
    """One job of the workflow. ``pre_skip``: PRE's exit code that means "done already, go on with the children"."""

    name: str
    submit: str
    vars: Mapping[str, str] = field(default_factory=dict)
    pre: Script | None = None
    post: Script | None = None
    pre_skip: int | None = None
    retries: int = 0
    unless_exit: int | None = None
    noop: bool = False


@dataclass(frozen=True)
class Dag:
    """Nodes, edges (parent, child) and the FINAL node. ``notes`` stand as comments at the head."""

    nodes: Sequence[Node]
    edges: Sequence[tuple[str, str]]
    final: Node | None = None
    config: str | None = None
    notes: Sequence[str] = ()


def _node(keyword: str, node: Node) -> Iterator[str]:
    yield f"{keyword} {node.name} {node.submit}" + (" NOOP" if node.noop else "")
    if node.vars:
        values = " ".join(f'{key}="{value}"' for key, value in node.vars.items())
        yield f"VARS {node.name} {values}"
    if node.pre is not None:
        yield f"SCRIPT PRE {node.name} {node.pre}"
    if node.post is not None:
        yield f"SCRIPT POST {node.name} {node.post}"
    if node.pre_skip is not None:
        yield f"PRE_SKIP {node.name} {node.pre_skip}"
    if node.retries:
        unless = f" UNLESS-EXIT {node.unless_exit}" if node.unless_exit is not None else ""
        yield f"RETRY {node.name} {node.retries}{unless}"


def lines(dag: Dag) -> Iterator[str]:
    """The lines of the .dag file, without line ends."""
    for note in dag.notes:
        yield f"# {note}".rstrip()
    if dag.config is not None:
        yield f"CONFIG {dag.config}"
    for node in dag.nodes:
        yield ""
        yield from _node("JOB", node)
    if dag.edges:
        yield ""
    for parent, child in dag.edges:
        yield f"PARENT {parent} CHILD {child}"
    if dag.final is not None:
        yield ""
        yield from _node("FINAL", dag.final)


def text(dag: Dag) -> str:
    """The .dag file."""
    return "\n".join(lines(dag)) + "\n"
