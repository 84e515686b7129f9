"""Records as pretraining writes them, made up: for the tests of evidence and of the report."""

import itertools
import zlib

import numpy as np

from simmim_lite.model.sizes import SIZES
from simmim_lite.training.run import Run, new_record
from simmim_lite.training.tuning import FineTune

ATTO, FEMTO, PICO = "swinv2_atto", "swinv2_femto", "swinv2_pico"


def record(*, val=0.3, train=0.3, scores=None, curve=None, status="done", reason=None, **fields):
    """A record of Run(**fields). `val`, `train`: final losses; `scores`: {"linear": .5, ...}; `curve`: losses."""
    run = Run(**{"images": 64, "steps": 1000, "seed": 0, "model": ATTO} | fields)
    where = {"commit": "0123456789abcdef0123456789abcdef01234567", "dirty": False, "device": "cpu (2 cores)"}
    where |= {"versions": {"simmim-lite": "0.1.0", "python": "3.11.2", "torch": "2.15.0"}, "threads": 1}
    where |= {"data_digest": "5f3a", "started": "2026-11-23T10:00:00+00:00", "finished": "2026-11-23T10:00:42+00:00"}
    if status == "failed":
        return new_record(run, status="failed", reason=reason or "loss is NaN at step 312", where=where)
    size, seen, images = SIZES[run.model], run.steps * run.batch_size, run.images or 16384
    losses = list(curve) if curve is not None else [val + 0.1, val + 0.02, val]
    gmac = size.gmac(run.image_size, run.window_size, head=True)
    points = [
        {"step": s, "images_seen": s * run.batch_size, "train_loss": train, "val_loss": v, "lr": run.lr}
        for s, v in ((round(run.steps * k / len(losses)), v) for k, v in enumerate(losses, 1))
    ]
    cost = {"images_seen": seen, "epochs": seen / images, "unique_images": images, "flops": 6e9 * gmac * seen}
    cost |= dict.fromkeys(("seconds", "core_seconds"), 6.0 + run.steps * gmac * 3.0) | {"peak_memory_bytes": 4e8}
    transfer = {
        name: {"score": score, "low": score - 0.01, "high": score + 0.01}
        | {"metric": "IoU" if name == "segment" else "top-1", "n_train": 3000, "n_test": 2000}
        for name, score in (scores or {}).items()
    }
    model = {"parameters": size.parameters, "total_parameters": size.simmim_parameters, "gmac": gmac}
    final = {"train_loss": train, "val_loss": val, "val_loss_se": 0.002, "val_images": 1024, "val_masks": 4}
    fields = {"cost": cost, "model": model, "curve": points, "final": final, "transfer": transfer, "where": where}
    return new_record(run, status="done", **fields)


def tuning(run, top1, *, scratch=False, **options):
    """A fine-tuning record as training/finetune.py writes it."""
    fields = run["run"]
    spec = (FineTune.scratch if scratch else FineTune.of)(Run.from_dict(fields), seed=fields["seed"], **options)
    whole = spec.to_dict()
    made = {"schema": 1, "kind": "finetune", "key": spec.key, "status": "done", "reason": None, "run": whole.pop("run")}
    final = {"top1": top1, "low": top1 - 0.02, "high": top1 + 0.02, "n_test": 2000}
    return made | {"spec": whole, "final": final, "curve": [], "cost": {"seconds": 1.0}, "where": run["where"]}


def losses(model, images, steps, seed):
    """Made-up validation and training loss shaped as in docs/facts.md, 7: a floor, size, length and overfitting."""
    noise = np.random.default_rng(zlib.crc32(f"{model}{images}{seed}".encode())).normal(0, 0.002)
    n = SIZES[model].parameters / 5e5
    clean, h = 0.255 + 0.010 * n**-0.4 + 0.07 * (steps / 250) ** -0.8, (n * steps * 64 / images**2 / 12) ** 0.9
    return clean + 0.13 * h / (1 + h) + noise, clean - 0.09 * h / (1 + h) + 0.03 + noise / 2


def study(
    sizes=(ATTO, FEMTO), levels=(64, 1024, 16384), lengths=(250, 500, 1000), seeds=(0, 1, 2),
    probes=("linear", "knn", "segment"), **fields,
):  # fmt: skip
    """The records of all four studies on made-up numbers, references included."""
    found, base = [], {"linear": (0.38, 1.0), "knn": (0.31, 0.9), "segment": (0.42, 1.4)}
    for model, seed in itertools.product(sizes, seeds):
        draw, common = np.random.default_rng(seed + 7), {"model": model, "seed": seed} | fields
        scores = {p: base[p][0] for p in probes}
        found.append(record(steps=0, images=levels[-1], val=0.8, scores=scores, **common))
        for images, steps in itertools.product(levels, lengths):
            points = np.arange(50, steps + 1, 50) if steps >= 50 else [steps]
            curve = [losses(model, images, s, seed) for s in points]
            val, train = curve[-1][0] + draw.normal(0, 0.0008), curve[-1][1]
            scores = {p: base[p][0] + 1.6 * (0.42 - val) * base[p][1] + draw.normal(0, 0.012) for p in probes}
            shape = [*(v for v, _ in curve[:-1]), val]
            made = record(images=images, steps=steps, val=val, train=train, scores=scores, curve=shape, **common)
            for point, (_, loss) in zip(made["curve"], curve, strict=True):
                point["train_loss"] = loss
            found.append(made)
    return found
