"""Which models no other one beats: the front of costs and scores."""

from collections.abc import Sequence

__all__ = ["pareto_front"]


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Return the places of the models that no other one beats, the cheapest first.

    One is beaten by another that costs no more and scores no less, and is better in one of both; equals are all kept.

    Args:
        costs: Of each model, as its latency: less is better.
        scores: Of each, as its mAP: more is better. Models without a score (NaN) are beaten.
    """
    by_cost = sorted((i for i in range(len(costs)) if scores[i] == scores[i]), key=lambda i: (costs[i], -scores[i]))
    front: list[int] = []
    for i in by_cost:
        last = front[-1] if front else None
        if last is None or scores[i] > scores[last] or (costs[i], scores[i]) == (costs[last], scores[last]):
            front.append(i)
    return front
