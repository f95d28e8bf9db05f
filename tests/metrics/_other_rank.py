"""A metric that believes in a second rank."""

NAN = float("nan")


def with_other_rank(metric, *states):
    """Let a metric believe in a second rank, whose states are given in the order they were declared."""
    others = iter(states)
    metric.distributed_available_fn = lambda: True
    metric.dist_sync_fn = lambda tensor, group=None: [tensor, next(others).reshape_as(tensor)]
    return metric
