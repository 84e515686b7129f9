"""Kills at random moments over the runs of tier smoke: `python tests/kills.py --kills 300 --real 30`.

Not a test but a script: it takes many minutes. Workers are killed with SIGKILL, one at work or two on one folder, most
of them forked from this process, which saves the seconds of their start; some kills are of the real command. Each time
a folder is finished its numbers and its weights are compared with those of an undisturbed one, and a new one is begun.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from simmim_lite.studies import workers
from simmim_lite.studies.grids import grid, tunings
from simmim_lite.training import train
from simmim_lite.training.run import read_record

CODE = (
    "from simmim_lite.training import train; train.CHECKPOINT_SECONDS = 0.02\n"
    "import sys; from simmim_lite.cli import main\n"
    "sys.exit(main(['study', 'all', '--tier', 'smoke', '--no-notebooks', '--precision', 'fp32', '--workers', '1', "
    "'--runs-dir', sys.argv[1]]))"
)


class Watch:
    """What a folder of runs may never do: lose or change a record that is written, or hold a file that is not whole."""

    def __init__(self, runs_dir: Path) -> None:
        self.runs_dir, self.seen = runs_dir, {}

    def records(self) -> list[Path]:
        return [*self.runs_dir.glob("records/*.json"), *self.runs_dir.glob("transfer/*.json")]

    def look(self) -> None:
        now = {path: path.stat().st_mtime_ns for path in self.records()}
        for path, when in self.seen.items():
            assert path in now, f"a finished run is lost: {path}"
            assert now[path] == when, f"a run is done twice: {path}"
        self.seen |= now

    def whole(self) -> None:
        for path in self.records():
            record = read_record(path)
            assert record["status"] == "done", f"{path}: {record['reason']}"
            if record["kind"] == "pretrain":
                assert (self.runs_dir / "weights").exists(), f"{path} without weights"
        for path in (p for p in self.runs_dir.rglob("*") if p.is_file() and not p.name.startswith(".")):
            if path.suffix in (".pt", ".pth"):
                torch.load(path, map_location="cpu", weights_only=True)


def jobs() -> list[workers.Job]:
    return workers.make_jobs([*grid("all", "smoke"), *tunings("all", "smoke")], {})


def work(runs_dir: Path) -> None:
    """What a worker of a study does, all jobs one after the other; what another process holds is waited for."""
    torch.set_num_threads(1)
    for wait in (False, True):
        for job in jobs():
            outcome = workers.do(job, str(runs_dir), "cpu", wait)
            assert not outcome.error, outcome.error


def forked(runs_dir: Path) -> int:
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        work(runs_dir)
        status = 0
    finally:
        os._exit(status)


def ended(pids: list[int], until: float, watch: Watch) -> list[int]:
    """Wait until a time; the processes that are still at work then. One that ended did so without an error."""
    while time.monotonic() < until and pids:
        for pid in list(pids):
            if os.waitpid(pid, os.WNOHANG)[0]:
                pids.remove(pid)
        watch.look()
        time.sleep(0.01)
    return pids


def numbers(runs_dir: Path) -> dict[str, object]:
    """Everything of the records that is not time or place, and the bytes of all weights."""
    found = {}
    for path in Watch(runs_dir).records():
        record = json.loads(path.read_text())
        parts = ("run", "spec", "final", "curve", "transfer", "score", "scores")
        found[path.name] = {name: record[name] for name in parts if name in record}
    weights = (p for p in runs_dir.glob("weights/*") if not p.name.startswith("."))
    return found | {path.name: path.read_bytes() for path in weights}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--real", type=int, default=30, help="kills of the real command among them")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    train.CHECKPOINT_SECONDS = 0.02
    torch.set_num_threads(1)
    draw, place = random.Random(options.seed), Path(tempfile.mkdtemp(prefix="kills-"))
    started = time.monotonic()
    pid = forked(place / "undisturbed")
    assert os.waitpid(pid, 0)[1] == 0
    took = time.monotonic() - started
    expected, kills, folders, at_work = numbers(place / "undisturbed"), 0, 0, 0
    print(f"{len(expected)} records and weights, {took:.0f} s undisturbed", flush=True)
    real = set(draw.sample(range(options.kills), options.real))
    while kills < options.kills:
        runs_dir = place / f"killed-{folders}"
        watch, finished = Watch(runs_dir), False
        while not finished and kills < options.kills:
            if kills in real:
                process = subprocess.Popen(
                    [sys.executable, "-c", CODE, str(runs_dir)],
                    stderr=subprocess.PIPE,
                    start_new_session=True,
                    text=True,
                )
                try:
                    errors = process.communicate(timeout=draw.uniform(3, 3 + took))[1]
                    assert process.returncode == 0, errors
                    finished = True
                except subprocess.TimeoutExpired:
                    process.kill()  # its workers end with it
                    process.communicate()
                    time.sleep(1)
                    kills += 1
                watch.look()
            else:
                pids = [forked(runs_dir) for _ in range(draw.choice((1, 1, 2)))]
                left = ended(pids, time.monotonic() + draw.uniform(0.02, took / 3), watch)
                finished = not left
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                    os.waitpid(pid, 0)
                kills, at_work = kills + len(left), at_work + bool(list(runs_dir.glob("checkpoints/*/*")))
            watch.look()
            watch.whole()
            if kills and kills % 20 == 0:
                print(f"{kills} kills, {folders} folders finished, {time.monotonic() - started:.0f} s", flush=True)
        if not finished:  # the last one: to its end, undisturbed
            assert os.waitpid(forked(runs_dir), 0)[1] == 0
            watch.look()
        folders += 1
        assert numbers(runs_dir) == expected, f"{runs_dir} differs from {place / 'undisturbed'}"
    real_kills = f"{options.real} of the real command, {at_work} with a checkpoint there"
    print(
        f"{kills} kills ({real_kills}), {folders} folders, each with the records and weights of the undisturbed one; "
        f"{time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
