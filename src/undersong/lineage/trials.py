"""Put declared edges to the test: the kinship of every model of a store with the base it is said to start from."""

from __future__ import annotations

from undersong.errors import UndersongError
from undersong.kinship import Subject
from undersong.lab import Lab, base_ref, unpack
from undersong.lineage import Graph, record_relation
from undersong.relation import relate


def trials(graph: Graph, lab: Lab) -> list[str]:
    """Test every model against its declared base, if both are at hand and nothing tested the pair yet; the fingerprints of
    the recorded results. What cannot be tested is told through the lab's progress."""
    done = {frozenset((t.a, t.b)) for t in graph.tested}
    out = []
    for node in [n for n in graph.nodes.values() if n.changed and n.complete]:
        root = graph.root(node.mark)
        if root is None or frozenset((node.mark, root)) in done:
            continue
        try:
            model, base = unpack(lab.store.get(node.mark)), base_ref(graph.nodes[root].label)
            lab.progress(f"testing {node.name} against {graph.nodes[root].label}")
            found = relate(Subject(node.name, model, lab.backend), Subject(base.base, base, lab.backend))
            out.append(record_relation(lab.store, found, model, base))
        except UndersongError as error:
            lab.progress(f"{node.name} was not tested: {error}")
    return out
