"""What a run prints and writes: metrics, the picture."""

import importlib
import itertools
import json
from contextlib import suppress

from configurator import UserError
from internals.files import replacing


def keep_previous(out_dir):
    """Move what an earlier run left in out_dir to out_dir/previous-1, 2, ...; ckpt.pt last."""
    names = ("best.pt", "metrics.jsonl", "loss.png", "config.json", "ckpt.pt")
    left = [out_dir / name for name in names if (out_dir / name).exists()]
    if left:
        numbered = (out_dir / f"previous-{n}" for n in itertools.count(1))
        folder = next(folder for folder in numbered if not folder.exists())
        folder.mkdir()
        for path in left:
            path.rename(folder / path.name)
        print(f"what was in {out_dir} is kept in {folder}")


def read_metrics(path, until):
    """The lines of metrics.jsonl for the steps up to `until`. Later ones are of a run that was
    killed before its next checkpoint; they will be logged again, as the evaluation at `until`."""
    entries = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        with suppress(ValueError):  # a kill can tear the last line
            entries.append(json.loads(line))
    return [m for m in entries if m["step"] < until or (m["step"] == until and "loss" in m)]


def draw_losses(metrics, path):
    """The picture of a run: the lines of its metrics.jsonl as curves."""
    from matplotlib.figure import Figure  # without pyplot, which would look for a screen

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for key, label, style in (
            ("loss", "one step's batch", {"color": "tab:blue", "alpha": 0.3, "linewidth": 0.8}),
            ("train_loss", "training text", {"color": "tab:blue", "marker": "."}),
            ("val_loss", "validation text", {"color": "tab:orange", "marker": "."})):
        points = [(m["step"], m[key]) for m in metrics if m.get(key) is not None]
        if points:
            axes.plot(*zip(*points, strict=True), label=label, **style)
        if points and key == "val_loss":
            best = min(points, key=lambda point: point[1])
            axes.plot(*best, "o", color="tab:orange", label=f"best: {best[1]:.4f}")
    axes.set(xlabel="step", ylabel="loss (nats a token)", title=path.parent.name)
    axes.grid(alpha=0.3)
    axes.legend()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png", dpi=150)


def human(number):
    """528123.0 -> '528k', 24140.0 -> '24.1k'"""
    power = 0 if number < 1e3 else 1 if number < 1e6 else 2
    number /= 1000**power
    return f"{number:.{int(power > 0 and number < 100)}f}{'kM'[:power][-1:]}"


def duration(seconds):
    """3725 -> '1h 02m', 147 -> '2m 27s'"""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02d}m" if hours else f"{minutes}m {seconds:02d}s"


def start_tracker(cfg, settings):
    """wandb, or trackio, which has its interface."""
    try:
        tracker = importlib.import_module(cfg.tracker)
    except ImportError:
        raise UserError(f"wandb_log=True needs a package: pip install {cfg.tracker}") from None
    tracker.init(project=cfg.wandb_project, name=cfg.wandb_run_name, config=settings)
    return tracker
