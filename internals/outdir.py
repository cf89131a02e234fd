"""The folder of a run: its lock, the files of an earlier run, and the log of a resumed one."""

import json
import shutil
import sys
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock

from internals import checkpoint
from internals.errors import UserError
from internals.files import acquired, replacing

# the files of a run, in the order in which keep_previous moves them; the second line is of stages/
FILES = ("config.json", "best.pt", "metrics.jsonl", "loss.png", "snapshots",
         "picture.png", "pairs.jsonl", "answers.jsonl", "reference.pt", "reward.pt", "ckpt.pt")


def writes(cfg, world):
    """Whether this process writes files into the folder of the run."""
    return world.is_master and not (cfg.eval_only or cfg.dry_run)


@contextmanager
def locked(cfg, world, written_at):
    """A context manager that prevents other runs in cfg.out_dir, if this process writes there.
    written_at: that of the Checkpoint of this run. Raises UserError if another run holds the lock,
    or has written a checkpoint since then, or if the folder is that of another program."""
    if not writes(cfg, world):
        yield
        return
    out_dir = Path(cfg.out_dir)
    of_run = [name for name in FILES if (out_dir / name).exists()]
    if of_run == ["config.json"]:  # for example a model of Hugging Face
        raise UserError(f"out_dir={out_dir} has a config.json, but no other file of a run, so "
                        "another program wrote it: choose another folder")
    out_dir.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out_dir / ".lock")
    # after a restart by torchrun, the old processes may take a while to stop
    patience = 60 if world.is_distributed else 0
    if not acquired(lock, timeout=patience):
        raise UserError(f"another run is writing to {out_dir}: wait for it, or choose another "
                        "out_dir")
    try:
        if written_at != checkpoint.written_at(out_dir):
            raise UserError(f"another run has written a checkpoint to {out_dir} since this one has "
                            "read it: run the command again")
        yield
    finally:
        lock.release()


def prepare_folder(out_dir, run, cfg, settings, say):
    """Prepare the folder for a run: a new run moves the files of an earlier run to a subfolder, and
    a resumed run cuts metrics.jsonl at its checkpoint and removes later snapshots.

    settings: for config.json. say: prints a line. Returns the lines of metrics.jsonl as dicts.
    """
    if cfg.init_from != "resume":
        keep_previous(out_dir, say)
    elif run.restarts_best:  # its evaluations use other sequences than before
        keep_best(out_dir, run.step)
    for name in (*FILES, "best-until-*.pt"):
        for leftover in out_dir.glob(f"{name}.*.tmp"):  # of a run that was killed while it wrote
            leftover.unlink()
    remove_snapshots_after(out_dir, run.step)
    metrics = read_metrics(out_dir / "metrics.jsonl", run.step)
    with replacing(out_dir / "metrics.jsonl") as temporary:
        lines = "".join(json.dumps(entry) + "\n" for entry in metrics)
        temporary.write_text(lines, encoding="utf-8")
    with replacing(out_dir / "config.json") as temporary:
        temporary.write_text(json.dumps(settings, indent=1), encoding="utf-8")
    return metrics


def keep_previous(out_dir, say):
    """Move the files of an earlier run from out_dir to out_dir/previous-1, previous-2, ...; ckpt.pt
    is moved last, so that init_from=auto still finds the run if this is interrupted."""
    left = sorted(out_dir.glob("best-until-*.pt"))
    left += [out_dir / name for name in FILES if (out_dir / name).exists()]
    if not left:
        return
    number = 1
    while (out_dir / f"previous-{number}").exists():
        number += 1
    folder = out_dir / f"previous-{number}"
    folder.mkdir()
    for path in left:
        path.rename(folder / path.name)
    say(f"the earlier run in {out_dir} is kept in {folder}")


def keep_best(out_dir, step):
    """Copy best.pt to best-until-<step>.pt, because the run will replace it without comparing. If
    that file exists, the run was killed after it had replaced best.pt."""
    path = out_dir / "best.pt"
    kept = out_dir / f"best-until-{step}.pt"
    if path.exists() and not kept.exists():
        with replacing(kept) as temporary:
            shutil.copyfile(path, temporary)


def remove_snapshots_after(out_dir, step):
    """Remove the snapshots of later steps. A run that was killed, or that resumes from an earlier
    checkpoint, will train these steps again, perhaps with other settings."""
    for number, path in checkpoint.snapshot_paths(out_dir).items():
        if number > step:
            path.unlink()


def read_metrics(path, step=sys.maxsize):
    """The lines of metrics.jsonl that a run resumed at `step` keeps. Later lines come from a run
    that was killed before its next checkpoint; their steps will be trained and logged again."""
    if not path.exists():
        return []
    entries = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        with suppress(ValueError, RecursionError):  # a kill can cut the last line in two
            entry = json.loads(line)
            if is_entry(entry):
                entries.append(entry)
    return [entry for entry in entries if entry["step"] <= step]


def is_entry(entry):
    """Whether a line is one of metrics.jsonl: a step, and numbers that can be drawn or null."""
    return isinstance(entry, dict) and type(entry.get("step")) is int and all(
        value is None or (type(value) in (int, float) and abs(value) < 1e300)
        for value in entry.values())
