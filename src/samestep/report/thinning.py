"""Long curves with fewer points, spikes included."""

from __future__ import annotations

import itertools

import numpy as np

from samestep.report.record import Curve


def thinned(curve: Curve, most: int) -> Curve:
    """At most about so many points: of each of equal stretches the least and the greatest, and a gap where there is one."""
    count = len(curve.steps)
    if count <= most:
        return curve
    edges = np.linspace(0, count, max(most // 2, 1) + 1).astype(int)
    chosen = {0, count - 1}
    for begin, end in itertools.pairwise(edges.tolist()):
        values = curve.values[begin:end]
        gaps = np.isnan(values)
        if not gaps.all():
            chosen |= {begin + int(np.nanargmin(values)), begin + int(np.nanargmax(values))}
        if gaps.any():
            chosen.add(begin + int(np.argmax(gaps)))
    places = sorted(chosen)
    return Curve(curve.steps[places], curve.values[places])
