"""Records as pretraining writes them, made up: for the tests of evidence and of the report."""

import zlib

import numpy as np

from simmim_lite.model.sizes import SIZES
from simmim_lite.training.run import Run, new_record
from simmim_lite.training.tuning import FineTune

ATTO, FEMTO, PICO = "swinv2_atto", "swinv2_femto", "swinv2_pico"


def record(*, val=0.3, train=0.3, scores=None, curve=None, status="done", reason=None, metric_low=0.01, **fields):
    """A record of Run(**fields). `val`, `train`: final losses; `scores`: {"linear": .5, ...}; `curve`: losses."""
    run = Run(**{"images": 64, "steps": 1000, "seed": 0, "model": ATTO} | fields)
    where = {
        "commit": "0123456789abcdef0123456789abcdef01234567",
        "dirty": False,
        "versions": {"simmim-lite": "0.1.0", "python": "3.11.2", "torch": "2.15.0"},
        "device": "cpu (2 cores)",
        "threads": 1,
        "data_digest": "5f3a",
        "started": "2026-11-23T10:00:00+00:00",
        "finished": "2026-11-23T10:00:42+00:00",
    }
    if status == "failed":
        return new_record(run, status="failed", reason=reason or "loss is NaN at step 312", where=where)
    size = SIZES[run.model]
    losses = list(curve) if curve is not None else [val + 0.1, val + 0.02, val]
    steps = [round(run.steps * (i + 1) / len(losses)) for i in range(len(losses))]
    seen = run.steps * run.batch_size
    gmac = size.gmac(run.image_size, run.window_size, head=True)
    seconds = 6.0 + run.steps * gmac * 3.0
    points = [
        {"step": s, "images_seen": s * run.batch_size, "train_loss": train, "val_loss": v, "lr": run.lr}
        for s, v in zip(steps, losses, strict=True)
    ]
    images = run.images or 16384
    cost = {"images_seen": seen, "epochs": seen / images, "unique_images": images, "flops": 6e9 * gmac * seen}
    cost |= {"seconds": seconds, "core_seconds": seconds, "peak_memory_bytes": 400_000_000}
    transfer = {
        name: {"score": score, "low": score - metric_low, "high": score + metric_low}
        | {"metric": "IoU" if name == "segment" else "top-1", "n_train": 3000, "n_test": 2000}
        for name, score in (scores or {}).items()
    }
    return new_record(
        run,
        status="done",
        cost=cost,
        model={"parameters": size.parameters, "total_parameters": size.simmim_parameters, "gmac": gmac},
        curve=points,
        final={"train_loss": train, "val_loss": val, "val_loss_se": 0.002, "val_images": 1024, "val_masks": 4},
        transfer=transfer,
        where=where,
    )


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
    n, seen = SIZES[model].parameters / 5e5, steps * 64
    omega = n * seen / images**2
    clean = 0.255 + 0.010 * n**-0.4 + 0.07 * (steps / 250) ** -0.8
    h = (omega / 12) ** 0.9
    return clean + 0.13 * h / (1 + h) + noise, clean - 0.09 * h / (1 + h) + 0.03 + noise / 2


def study(
    sizes=(ATTO, FEMTO),
    levels=(64, 1024, 16384),
    lengths=(250, 500, 1000),
    seeds=(0, 1, 2),
    probes=("linear", "knn", "segment"),
    **fields,
):
    """The records of all four studies on made-up numbers, references included."""
    found = []
    for model in sizes:
        for seed in seeds:
            base = {"linear": 0.38, "knn": 0.31, "segment": 0.42}
            draw = np.random.default_rng(seed + 7)
            common = {"model": model, "seed": seed} | fields
            found.append(record(steps=0, images=levels[-1], val=0.8, scores={p: base[p] for p in probes}, **common))
            for images in levels:
                for steps in lengths:
                    _, train = losses(model, images, steps, seed)
                    points = np.arange(50, steps + 1, 50) if steps >= 50 else [steps]
                    curve = [losses(model, images, s, seed)[0] for s in points]
                    val = curve[-1] = curve[-1] + draw.normal(0, 0.0008)
                    gain = 1.6 * (0.42 - val)
                    scores = {
                        p: base[p] + gain * g + draw.normal(0, 0.012)
                        for p, g in (("linear", 1.0), ("knn", 0.9), ("segment", 1.4))
                        if p in probes
                    }
                    made = record(
                        images=images, steps=steps, val=val, train=train, scores=scores, curve=curve, **common
                    )
                    for point, s in zip(made["curve"], points, strict=True):
                        point["train_loss"] = losses(model, images, s, seed)[1]
                    found.append(made)
    return found
