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
                      fontsize=fontsize, va="center", annotation_clip=False, parse_math=False,
                      arrowprops={"arrowstyle": "-", "color": "0.8", "linewidth": 0.7,
                                  "relpos": (0, 0.5)})  # from the point to the label's left edge
        lowest = place + 1.3 * fontsize


def draw_losses(metrics, path):
    """loss.png: the lines of metrics.jsonl as curves."""
    with picture(path, 8, 4.5) as figure:
        axes = figure.subplots()
        drawn = []
        for key, label, style in (
                ("loss", "training loss (one batch)",
                 {"color": "tab:blue", "alpha": 0.3, "linewidth": 0.8}),
                ("train_loss", "training loss", {"color": "tab:blue", "marker": "."}),
                ("val_loss", "validation loss", {"color": "tab:orange", "marker": "."})):
            points = [(m["step"], m[key]) for m in metrics if m.get(key) is not None]
            drawn += points
            if points:
                axes.plot(*zip(*points, strict=True), label=label, **style)
        best = best_evaluation(metrics)
        if best:
            axes.plot(*best, "o", color="tab:orange", label=f"best: {best[1]:.4f}")
        axes.set(xlabel="step", ylabel="loss (nats per token)")
        axes.set_title(path.parent.name, parse_math=False)  # a folder's name may have a $
        axes.grid(alpha=0.3)
        cut_beginning(axes, [drawn])
        if drawn:
            axes.legend()


def best_evaluation(metrics):
    """(step, loss) of the lowest validation loss; None if there is none. Only evaluations of the
    same sequences as the last one count."""
    best = None
    for entry in metrics:
        if entry.get("restart"):
            best = None
        loss = entry.get("val_loss")
        if loss is not None and (best is None or loss < best[1]):
            best = (entry["step"], loss)
    return best


def cut_beginning(axes, runs):
    """End the y axis at the highest loss after the first tenth of each run. The loss of a new model
    is so high that the rest of the curve would look flat. A note says what is cut.

    runs: a list of (step, loss) for each run in `axes`."""
    points = []
    later = []
    for run in runs:
        last_step = max((step for step, _ in run), default=0)
        points += run
        later += [loss for step, loss in run if 10 * step > last_step]
    if not later:
        return
    step, highest = max(points, key=lambda point: point[1])
    top, bottom = max(later), min(loss for _, loss in points)
    if highest - bottom <= 1.5 * (top - bottom):
        return  # the curve is readable as it is
    margin = 0.05 * (top - bottom) or 0.05 * abs(top) or 1.0
    axes.set_ylim(bottom - margin, top + margin)
    axes.set_title(f"↑ {highest:.2f} at step {step:,}", loc="left", fontsize="medium")
