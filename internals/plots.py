"""Figures: write one to a file, and label the ends of its lines."""

import os
import warnings
from contextlib import contextmanager

from internals.files import replacing


def load_matplotlib():
    """The module matplotlib. The variable MPLBACKEND is hidden while it is imported: Jupyter sets
    it to a backend for notebooks, which matplotlib cannot import in other environments."""
    backend = os.environ.pop("MPLBACKEND", None)
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    return matplotlib


@contextmanager
def picture(path, width, height, dpi=150):
    """Yields an empty figure of this size in inches, and writes it to `path` as a PNG. matplotlib's
    defaults apply, not the user's matplotlibrc, which may, for example, ask for LaTeX."""
    matplotlib = load_matplotlib()
    from matplotlib.figure import Figure  # not pyplot, which would look for a screen

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        figure = Figure(figsize=(width, height), layout="constrained")
        yield figure
        with replacing(path) as temporary, warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")  # the font has no CJK characters
            figure.savefig(temporary, format="png", dpi=dpi)


def label_ends(axes, ends, fontsize=9):
    """Write a label to the right of the last point of each line. A label that would overlap the one
    below it is moved up, and a thin line connects it to its point.

    ends: a list of (x, y, label, color). The limits of the axes must not change afterwards.
    """
    figure = axes.figure
    figure.draw_without_rendering()  # computes the positions of the axes
    lowest = float("-inf")
    for x, y, label, color in sorted(ends, key=lambda end: end[1]):
        point = axes.transData.transform((x, y))[1] * 72 / figure.dpi  # in points
        place = max(point, lowest)
        axes.annotate(label, (x, y), (20, place - point), textcoords="offset points", color=color,
                      fontsize=fontsize, va="center", annotation_clip=False,
                      arrowprops={"arrowstyle": "-", "color": "0.8", "linewidth": 0.7,
                                  "relpos": (0, 0.5)})  # from the point to the label's left edge
        lowest = place + 1.3 * fontsize
