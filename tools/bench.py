"""Speed on this machine (`make bench`): ratios on a CPU; on a GPU, images a second, and what each way is worth.

    python tools/bench.py                                   # a CPU: step, loader, mask lab
    python tools/bench.py --device cuda --out bench.json    # `simmim-lite study --images-per-second` takes its numbers

Ways are taken in turns, or beside the peak of a matrix product, in one process: machines are noisy.
"""

import argparse
import contextlib
import gc
import itertools
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel

from simmim_lite.errors import UserError, check_writable, first_line
from simmim_lite.lab.pictures import PHOTOS
from simmim_lite.model import swin
from simmim_lite.model.attention import reference_attention, sdpa_attention
from simmim_lite.model.sizes import LAPTOP, PAPER, SIZES, full_name
from simmim_lite.processes import commit, device_name, now, one_thread, pick_device, timed, versions
from simmim_lite.training.parallel import Group, Parallel
from simmim_lite.training.pretrain import build, build_optimiser, example
from simmim_lite.training.probes import IMAGENET_MEAN, IMAGENET_STD
from simmim_lite.training.run import PRECISIONS, Run, Runtime, write_atomic
from simmim_lite.training.train import step

BATCHES = (512, 256, 128, 64, 32, 16, 8)  # images of a step, tried from the left until they fit
ROUNDS = 9  # turns of each way, or timed steps
_WARM = 3  # steps before the clock starts: compilation, the allocator
_FULL = "out of memory"
SIZE, SIDES = 192, (500, 375)  # pixels: of the loader's input, and of a file, a common size in ImageNet
LOADED = 32  # pictures of a batch
_BACKENDS = {
    "SDPA, memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA, cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA, plain products": SDPBackend.MATH,
}
#: Ways to take a step: what differs from training as it is by default (precision bf16).
WAYS: dict[str, dict] = {
    "attention as written": {"attention": "as written"},
    "as trained by default": {},
    "+ compile": {"compile": True},
    "+ compile, checkpointing": {"compile": True, "checkpointing": True},
    "+ checkpointing": {"checkpointing": True},
    "fp32 in place of bf16": {"precision": "fp32"},
    **{name: {"attention": name} for name in _BACKENDS},
}
FITTED = ("as trained by default", "+ compile", "+ compile, checkpointing")  # that each size is measured in


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or mps")
    parser.add_argument("--sizes", metavar="A,B", help="by size and way: sizes, as in base,large; the paper's five")
    parser.add_argument("--out", metavar="FILE.json", help="keep the tables by size")
    options = parser.parse_args(words)
    try:
        place = pick_device(options.device)
        if options.out:
            check_writable(options.out)
        if place.type == "cpu" and not options.sizes:
            ratios()
        else:
            models = [full_name(name.strip()) for name in (options.sizes or ",".join(PAPER)).split(",")]
            if len({m in LAPTOP for m in models}) > 1:
                raise UserError("sizes are of two ladders: give laptop sizes (32 px), or the paper's (192 px)")
            record = by_size(place, models)
            if options.out:
                write_atomic(options.out, json.dumps(record, indent=1) + "\n")
                print(f"written: {options.out}")
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.status
    return 0


def ratios() -> None:
    """What a CPU can say: our step beside transformers', our loader beside torchvision's, the mask lab."""
    torch.set_num_threads(1)
    say(f"{device_name(torch.device('cpu'))}, one thread, torch {torch.__version__}")
    say("\nswinv2_small, 192 px, batch 4: forward, backward and AdamW, our normalised target on; seconds")
    say(against_transformers().to_string())
    say(f"\nJPEGs ({SIDES[0]} x {SIDES[1]} px) to batches of {LOADED} at {SIZE} px, one core")
    say(loader().to_string())
    try:
        import headless

        say("\n" + "\n".join(headless.bench()))
    except UserError as error:  # everything else was measured
        say(f"\nmask lab: not measured ({error})")


say = partial(print, flush=True)


def against_transformers() -> pd.DataFrame:
    """Our step beside transformers' eager one by precision: same optimiser, in turns; median of the ratios."""
    from transformers import Swinv2Config, Swinv2ForMaskedImageModeling  # pip install "simmim-lite[bench]"

    size, run = SIZES["swinv2_small"], replace(recipe("swinv2_small"), batch_size=4, drop_path=0.0)
    shape = {"embed_dim": size.embed_dim, "depths": list(size.depths), "num_heads": list(size.heads)}
    shape |= {"image_size": 192, "patch_size": 4, "window_size": 12, "encoder_stride": 32, "drop_path_rate": 0.0}
    other, mine = Swinv2ForMaskedImageModeling(Swinv2Config(**shape)).train(), build(run).train()
    images, mask = example(run, "cpu")

    def once(optimiser: torch.optim.Optimizer, loss: Callable, precision: str) -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss()
        value.backward()
        optimiser.step()
        optimiser.zero_grad()

    rows, flop = {}, 6e9 * size.gmac(192, 12, head=True) * run.batch_size
    losses = (lambda: other(images, bool_masked_pos=mask.flatten(1)).loss, lambda: mine(images, mask))
    for precision in PRECISIONS:
        optimisers = [torch.optim.AdamW(model.parameters(), 1e-4, fused=True) for model in (other, mine)]
        pairs = zip(optimisers, losses, strict=True)
        times, ratios = in_turns([partial(once, *pair, precision) for pair in pairs])
        row = dict(zip(("transformers", "ours"), map(min, times), strict=True)) | {"ratio": ratios[1]}
        rows[precision] = row | {"share of peak": flop / row["ours"] / peak(torch.device("cpu"), precision)}
    return pd.DataFrame(rows).T.round(2)


def loader(turns: int = 8) -> pd.DataFrame:
    """Pictures a second of one core, decoded, cropped, flipped, normalised, and how many times torchvision's, whose own
    pipeline of the same augmentation is as its references have it; turns: batches in a go."""
    from torchvision import datasets
    from torchvision import transforms as T

    from simmim_lite.data.batches import Batches
    from simmim_lite.data.packs import pack
    from simmim_lite.data.sources import listing, open_pictures

    steps = [T.RandomResizedCrop(SIZE, (0.67, 1), (3 / 4, 4 / 3)), T.RandomHorizontalFlip(), T.ToTensor()]
    views = T.Compose([*steps, T.Normalize(IMAGENET_MEAN, IMAGENET_STD)])

    def ours(spec: str) -> Callable[[], list]:
        train, count = open_pictures(spec).train, itertools.count()
        options = {"seed": 0, "batch_size": LOADED, "image_size": SIZE, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
        batches = Batches(train, np.arange(len(train)), steps=1 << 30, **options)
        return lambda: [None for _ in range(turns) if batches.batch(next(count)) is None]

    with tempfile.TemporaryDirectory(prefix="simmim-lite-") as folder:
        root, out = collages(Path(folder) / "files", LOADED * turns), Path(folder) / "pack"
        pack(listing(f"imagefolder:{root}"), out)
        data = datasets.ImageFolder(root / "train", views)
        theirs = torch.utils.data.DataLoader(data, batch_size=LOADED, shuffle=True)
        ways = {"torchvision: ImageFolder, DataLoader": lambda: [None for _ in theirs]}
        ways["ours, the same files"] = ours(f"imagefolder:{root}")
        ways["ours, packed at short side 256"] = ours(f"packed:{out}")
        times, ratios = in_turns(list(ways.values()))
    rates = [round(LOADED * turns / min(seconds)) for seconds in times]
    return pd.DataFrame({"pictures a second": rates, "ratio": np.round(ratios, 2)}, index=list(ways))


def collages(root: Path, count: int) -> Path:
    """train/CLASS/ and val/CLASS/ with JPEGs (quality 95) of four of the shipped photographs each."""
    photos = [Image.open(path).convert("RGB").resize((250, 188)) for path in sorted(PHOTOS.glob("*.jpg"))]
    for k in range(count + 16):
        path = root / ("train" if k < count else "val") / "ab"[k % 2] / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", SIDES)
        for n, corner in enumerate(itertools.product((0, 250), (0, 188))):
            image.paste(photos[(k + n * n) % len(photos)], corner)
        image.save(path, quality=95)
    return root


def in_turns(ways: list[Callable[[], object]]) -> tuple[list[list[float]], list[float]]:
    """Seconds of each way, taken in turns after one warm-up each, and the median of the first's over each."""
    for way in ways:
        way()
    times = list(zip(*([timed(way, "cpu") for way in ways] for _ in range(ROUNDS)), strict=True))
    return times, [statistics.median(a / b for a, b in zip(times[0], own, strict=True)) for own in times]


def by_size(place: torch.device, models: Sequence[str]) -> dict:
    """Two tables: each size at the batch that fits, and each way at the middle size; returns all with its provenance.

    models: sizes of one ladder (laptop: 32 px; the paper's: 192 px, window 12, normalised target).
    """
    chosen, sizes = models[len(models) // 2], []
    with one_thread(place):
        peaks = {p: peak(place, p) for p in PRECISIONS}
        speeds = ", ".join(f"{p} {rate / 1e12:.3g} TFLOP/s" for p, rate in peaks.items())
        say(f"{device_name(place)}, torch {torch.__version__}; matrix product: {speeds}")
        say("\nforward, backward and AdamW, target counted")
        for model, way in itertools.product(models, FITTED):
            tried = (speed(model, way, place, peaks, batch) for batch in BATCHES)
            sizes.append(next((one for one in tried if one["reason"] != _FULL), {"model": model, "way": way}))
        say(pd.DataFrame(sizes).set_index(["model", "way"]).to_string())
        batch = max(one.get("batch", 1) for one in sizes if (one["model"], one["way"]) == (chosen, FITTED[0]))
        say("\none thing changed at a time")
        ways = [speed(chosen, way, place, peaks, batch) for way in WAYS]
        say(pd.DataFrame(ways).set_index(["model", "way"]).to_string())
    best = {m: max(one.get("images_per_second") or 0 for one in sizes if one["model"] == m) for m in models}
    found = {"kind": "bench", "device": device_name(place), "image_size": recipe(chosen).image_size}
    found |= {"images_per_second": {model: rate for model, rate in best.items() if rate}, "peak_flops": peaks}
    return found | {"sizes": sizes, "ways": ways, "where": {**commit(), "versions": versions(), "finished": now()}}


def recipe(model: str) -> Run:
    """The run of which a step is timed: docs/facts.md, 3, for the paper's sizes, else that of the laptop studies."""
    paper = {"image_size": 192, "window_size": 12, "mask_patch": 32, "target": "normalized", "drop_path": 0.1}
    return Run(model=model, **({} if model in LAPTOP else paper))


def peak(device: torch.device, precision: str) -> float:
    """FLOP a second of a square matrix product: the best of twenty."""
    side = {"cuda": 8192, "cpu": 1024}.get(device.type, 2048)
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * side**3 / min(timed(lambda: a @ a, device) for _ in range(20))


def speed(model: str, way: str, device: torch.device, peaks: dict[str, float], batch: int) -> dict:
    """Images a second of a way at one batch by the median step, share of the peak, memory; or why it did not run."""
    how = {"attention": "", "precision": "bf16"} | WAYS[way]
    found = {"model": model, "way": way, "batch": batch, "images_per_second": None, "reason": ""}
    run = replace(recipe(model), batch_size=batch, precision=how.pop("precision"))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        rate = batch / seconds(run, device, **how)
        flop = 6e9 * SIZES[model].gmac(run.image_size, run.window_size, head=True)
        found |= {"images_per_second": rate, "share_of_peak": flop * rate / peaks[run.precision]}
    except (UserError, RuntimeError, NotImplementedError) as error:  # no memory, no such backend, a compiler's
        found["reason"] = _FULL if isinstance(error, torch.OutOfMemoryError) else first_line(error)[:100]
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        found["memory_bytes"] = torch.cuda.max_memory_allocated(device)
        torch.cuda.empty_cache()
    return found


def seconds(run: Run, device: torch.device, attention: str, **how: bool) -> float:
    """Of the median step; how: `compile` and `checkpointing`."""
    images = example(run, device)
    with attended(attention):
        net = build(run).to(device).train()
        optimiser, parallel = build_optimiser(net, run), Parallel(net, Group(device), Runtime(**how))
        if run.drop_path:
            images += (torch.rand(run.batch_size, sum(SIZES[run.model].depths), 2, device=device),)
        times = [timed(lambda: step(parallel, optimiser, images, 0.0, run), device) for _ in range(_WARM + ROUNDS)]
    return statistics.median(times[_WARM:])


@contextlib.contextmanager
def attended(way: str) -> Iterator[None]:
    """Inside, blocks compute attention in the way that is asked for."""
    own, known = swin.window_attention, dict.fromkeys(_BACKENDS, sdpa_attention)
    swin.window_attention = ({"": own, "as written": reference_attention} | known)[way]
    try:
        with sdpa_kernel([_BACKENDS[way]]) if way in _BACKENDS else contextlib.nullcontext():
            yield
    finally:
        swin.window_attention = own


if __name__ == "__main__":
    sys.exit(main())
