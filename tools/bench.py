"""Speed on this machine (`make bench`): ratios on a CPU; on a GPU, images a second, and what each means is worth.

    python tools/bench.py                                   # a CPU: step, ladder, loader, mask lab
    python tools/bench.py --device cuda --out bench.json    # which `simmim-lite study --images-per-second` reads
    python tools/bench.py --sizes atto,femto                # a CPU by size and way, as a GPU

Ways are taken in turns, or beside the peak of a matrix product, in one process: machines are noisy.
"""

import argparse
import contextlib
import gc
import io
import json
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from simmim_lite.errors import UserError, check_writable, first_line
from simmim_lite.model import simmim, swin
from simmim_lite.model.attention import reference_attention, sdpa_attention
from simmim_lite.model.simmim import create_model
from simmim_lite.model.sizes import LAPTOP, PAPER, SIZES, full_name
from simmim_lite.processes import commit, device_name, now, one_thread, pick_device, timed, versions
from simmim_lite.training.parallel import Group, Parallel
from simmim_lite.training.pretrain import build, build_optimiser, example, make_batches, step_seconds
from simmim_lite.training.probes import IMAGENET_MEAN, IMAGENET_STD
from simmim_lite.training.run import PRECISIONS, Run, Runtime, write_atomic
from simmim_lite.training.train import step

#: Images of a step, tried from the left until they fit.
BATCHES = (512, 256, 128, 64, 32, 16, 8)
_WARM = 3  # steps before the clock starts: compilation, the allocator
_FULL = "out of memory"
SIZE, SIDES = 192, (500, 375)  # pixels: of the loader's input, and of a file, a common size in ImageNet
LOADED, PICTURES = 32, 256  # pictures of a batch, and of a turn


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda or mps")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each way, or timed steps (9)")
    parser.add_argument("--sizes", metavar="A,B", help="by size and way: sizes, as in base,large; the paper's five")
    parser.add_argument("--batch", type=int, help="images of a step; by default the most that fit")
    parser.add_argument("--out", metavar="FILE.json", help="keep the tables by size")
    options = parser.parse_args(words)
    try:
        for line in tables(options):
            print(line, flush=True)
    except UserError as error:
        print(f"bench: {error}", file=sys.stderr)
        return error.status
    return 0


def tables(options: argparse.Namespace) -> Iterator[str]:
    """What is asked for, line by line as it is measured."""
    place = pick_device(options.device)
    for name in ("rounds", "batch"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"{name} is {getattr(options, name)}: give at least 1")
    if place.type == "cpu" and not options.sizes:
        if options.out or options.batch:
            raise UserError("--out and --batch are for the table by size: give --sizes too, as in --sizes atto,femto")
        return (yield from on_a_cpu(options.rounds))
    models = [full_name(name.strip()) for name in (options.sizes or ",".join(PAPER)).split(",")]
    if options.out:
        check_writable(options.out)
    record = yield from by_size(place, models, (options.batch,) if options.batch else BATCHES, options.rounds)
    if options.out:
        write_atomic(options.out, json.dumps(record, indent=1) + "\n")
        yield f"written: {options.out}"


# --- a CPU: ratios ---------------------------------------------------------------------------------------------------


def on_a_cpu(rounds: int) -> Iterator[str]:
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    yield f"{device_name(cpu)}, one thread, torch {torch.__version__}"
    peaks = {p: peak(cpu, p) for p in PRECISIONS}
    yield from (f"matrix product 1024^3, {p}: {peaks[p] / 1e9:.0f} GFLOP/s" for p in PRECISIONS)
    yield "\nswinv2_small, 192 px, batch 4: forward + backward + AdamW, our normalised target on"
    yield f"{'':18s}{'transformers':>12s}{'ours':>10s}{'ratio':>8s}{'share of peak':>16s}"
    yield from against_transformers(peaks, rounds)
    yield "\nlaptop ladder, 32 px, batch 64"
    yield f"{'':16s}{'images/s fp32':>16s}{'images/s bf16':>16s}{'batch assembly / step':>24s}"
    yield from ladder(rounds)
    yield "\nloader of pictures at full size"
    yield from loader(rounds)
    yield ""
    try:
        import headless

        yield from headless.bench()
    except UserError as error:  # everything else was measured
        yield f"mask lab: not measured ({error})"


def against_transformers(peaks: dict[str, float], rounds: int) -> Iterator[str]:
    """A line a precision: our step against transformers' eager one, same optimiser, in turns; median of the ratios."""
    try:
        from transformers import Swinv2Config, Swinv2ForMaskedImageModeling
    except ImportError:
        raise UserError("the bench compares with transformers: pip install transformers") from None
    size = SIZES["swinv2_small"]
    shape = {"embed_dim": size.embed_dim, "depths": list(size.depths), "num_heads": list(size.heads)}
    shape |= {"image_size": 192, "patch_size": 4, "window_size": 12, "encoder_stride": 32, "drop_path_rate": 0.0}
    theirs = Swinv2ForMaskedImageModeling(Swinv2Config(**shape)).train()
    ours = create_model("swinv2_small", 192, 12, target="normalized").train()
    run = Run(model="swinv2_small", image_size=192, window_size=12, mask_patch=32, batch_size=4)
    images, mask = example(run, "cpu")
    flat = mask.flatten(1)

    def way(model: torch.nn.Module, loss: Callable[[], Tensor], precision: str) -> Callable[[], None]:
        optimiser = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

        def go() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                value = loss()
            value.backward()
            optimiser.step()
            optimiser.zero_grad()

        return go

    for precision in PRECISIONS:
        both = [way(theirs, lambda: theirs(images, bool_masked_pos=flat).loss, precision)]
        times = in_turns([*both, way(ours, lambda: ours(images, mask), precision)], rounds)
        ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
        share = 6e9 * size.gmac(192, 12, head=True) * run.batch_size / min(times[1]) / peaks[precision]
        yield f"{precision:20s}{''.join(f'{min(t):8.3f} s' for t in times)}{ratio:8.2f}{share:16.0%}"


def ladder(rounds: int, models: Sequence[str] = tuple(LAPTOP)) -> Iterator[str]:
    """The laptop sizes: images a second, and batch assembly (order, flip, normalise, masks) beside the faster step."""
    from simmim_lite.data.sources import open_data

    run = Run()
    batches = make_batches(run, open_data(run.data, run.image_size))
    assembly = statistics.median(timed(lambda i=i: batches.batch(i), "cpu") for i in range(50))
    for name in models:
        seconds = {p: step_seconds(Run(model=name, precision=p), steps=rounds) for p in PRECISIONS}
        rates = "".join(f"{run.batch_size / seconds[p]:16.0f}" for p in PRECISIONS)
        yield f"{name:16s}{rates}{assembly / min(seconds.values()):24.1%}"


def loader(rounds: int, pictures: int = PICTURES) -> Iterator[str]:
    """Pictures a second of one core, decoded, cropped, flipped, normalised, and how many times torchvision's: of
    collages of the photographs that the project ships, in files as ImageNet's."""
    from simmim_lite.data.packs import pack
    from simmim_lite.data.sources import catalogue

    with tempfile.TemporaryDirectory(prefix="simmim-lite-") as folder:
        root, out, turns = collages(Path(folder) / "files", pictures), Path(folder) / "pack", pictures // LOADED
        yield f"JPEGs ({pictures} collages, {SIDES[0]} x {SIDES[1]} px) to batches of {LOADED} at {SIZE} px, one core"
        pack(catalogue(f"imagefolder:{root}"), out, workers=1)
        ways = {
            "torchvision: ImageFolder, DataLoader": theirs(root / "train", turns),
            "ours, the same files": ours(f"imagefolder:{root}", turns),
            "ours, packed at short side 256": ours(f"packed:{out}", turns),
        }
        times = in_turns(list(ways.values()), rounds)
    for name, seconds in zip(ways, times, strict=True):
        ratio = statistics.median(a / b for a, b in zip(times[0], seconds, strict=True))
        yield f"{name:40s}{LOADED * turns / min(seconds):10.0f} pictures/s{ratio:8.2f}"


def theirs(root: Path, turns: int) -> Callable[[], None]:
    """torchvision's own pipeline of the same augmentation, as its references have it; no worker but this process."""
    from torchvision import datasets
    from torchvision import transforms as T

    steps = [T.RandomResizedCrop(SIZE, (0.67, 1), (3 / 4, 4 / 3)), T.RandomHorizontalFlip(), T.ToTensor()]
    views = T.Compose([*steps, T.Normalize(IMAGENET_MEAN, IMAGENET_STD)])
    batches = DataLoader(datasets.ImageFolder(root, views), batch_size=LOADED, shuffle=True)
    return lambda: [batch for batch, _ in zip(batches, range(turns), strict=False)] and None


def ours(spec: str, turns: int) -> Callable[[], None]:
    """The loader of pretraining at full size, in this process."""
    from simmim_lite.data.batches import Streamed
    from simmim_lite.data.sources import open_pictures

    train = open_pictures(spec).train
    options = {"seed": 0, "batch_size": LOADED, "image_size": SIZE, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    batches, count = Streamed(train, np.arange(len(train)), steps=1 << 30, **options), iter(range(1 << 30))
    return lambda: [batches.batch(next(count)) for _ in range(turns)] and None


def collages(root: Path, pictures: int) -> Path:
    """train/CLASS/ and val/CLASS/ with JPEGs (quality 95) of parts of the shipped photographs."""
    names = sorted(p for p in map(str, files("simmim_lite.lab").joinpath("photos").iterdir()) if p.endswith(".jpg"))
    photos, rng = [Image.open(io.BytesIO(Path(p).read_bytes())).convert("RGB") for p in names], np.random.default_rng(0)
    for k in range(pictures + 16):
        folder = root / ("train" if k < pictures else "val") / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", SIDES)
        for x, y in ((x, y) for x in range(0, SIDES[0], 250) for y in range(0, SIDES[1], 188)):
            photo = photos[rng.integers(len(photos))]
            side = int(min(photo.size) * rng.uniform(0.6, 1))
            left, top = (int(rng.integers(s - side + 1)) for s in photo.size)
            image.paste(photo.resize((250, 188), box=(left, top, left + side, top + side)), (x, y))
        image.save(folder / f"{k}.jpg", quality=95)
    return root


def in_turns(ways: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each way, taken in turns after one warm-up each: [[way 0's], [way 1's], ...]."""
    for way in ways:
        way()
    rows = [[timed(way, "cpu") for way in ways] for _ in range(rounds)]
    return [list(column) for column in zip(*rows, strict=True)]


# --- any device: by size and by way ----------------------------------------------------------------------------------

_BACKENDS = {
    "SDPA, memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA, cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA, plain products": SDPBackend.MATH,
}


@dataclass(frozen=True)
class Way:
    """How a step is taken. As it comes, it is how training takes it by default."""

    name: str = "as trained by default"
    precision: str = "bf16"
    attention: str = "own"  # own: what training uses; reference: as the paper writes it; flex; or one of SDPA's
    compile: bool = False
    checkpointing: bool = False
    pooled_target: bool = False  # three naive poolings, not box sums


@dataclass(frozen=True)
class Speed:
    """What one way reached at one size."""

    model: str
    way: str
    batch: int
    images_per_second: float | None  # None: it did not run
    share_of_peak: float | None  # of the matrix product of its precision, measured in the same process
    memory_bytes: int | None  # peak of the device; None on a CPU
    reason: str = ""  # why it did not run


#: What speed is compared with: each operation by itself, as the paper writes it.
PLAIN = Way("plain eager", attention="reference", pooled_target=True)
#: Those that each size is measured in.
FITTED = (Way(), Way("+ compile", compile=True), Way("+ compile, checkpointing", compile=True, checkpointing=True))
WAYS = (
    PLAIN,
    replace(PLAIN, name="plain eager, fp32", precision="fp32"),
    *FITTED,
    Way("+ checkpointing", checkpointing=True),
    Way("fp32 in place of bf16", precision="fp32"),
    Way("pooled target", pooled_target=True),
    *(Way(name, attention=name) for name in _BACKENDS),
    Way("FlexAttention, + compile", attention="flex", compile=True),
    Way("attention as written", attention="reference"),
)


def by_size(place: torch.device, models: Sequence[str], batches: Sequence[int], steps: int) -> Iterator[str]:
    """Two tables: each size at the batch that fits, and each way at the middle size; returns all with its provenance.

    models: sizes of one ladder (laptop: 32 px; the paper's: 192 px, window 12, normalised target).
    """
    if len({m in LAPTOP for m in models}) > 1:
        raise UserError("sizes are of two ladders: give laptop sizes (32 px), or the paper's (192 px)")
    at, chosen, started, found, tried = recipe(models[0]), models[len(models) // 2], now(), [], []
    with one_thread(place):
        peaks = {p: peak(place, p) for p in ("bf16", "fp32")}
        memory = torch.cuda.get_device_properties(place).total_memory if place.type == "cuda" else None
        size = f", {memory / 2**30:.0f} GiB" if memory else ", one thread"
        yield f"{device_name(place)}{size}, torch {torch.__version__}"
        yield ", ".join(f"{p} matrix product {peaks[p] / 1e12:.3g} TFLOP/s" for p in peaks)
        yield f"\n{at.image_size} px, window {at.window_size}: forward, backward and AdamW, target counted"
        head = f"{'batch':>6s}{'images/s':>10s}{'of peak':>9s}{'memory':>10s}"
        yield f"{'size and way, share of the peak of its own precision':56s}{head}"
        for model in models:
            for way in FITTED:
                found.append(fitted(model, way, place, peaks, batches, steps))
                yield _line(f"{model}, {way.name}", found[-1])
        own = max((s for s in found if (s.model, s.way) == (chosen, Way().name)), key=lambda s: s.batch)
        yield f"\n{chosen}, batch {own.batch}: one thing changed at a time, and the first line again at the end"
        yield f"{'way':56s}{head}{'x plain':>9s}"
        for way in (*WAYS, PLAIN):
            tried.append(speed(chosen, way, place, peaks, own.batch, steps))
            yield _line(way.name, tried[-1], tried[0].images_per_second)
    best = {m: max((s.images_per_second or 0 for s in found if s.model == m), default=0) for m in models}
    return {
        "kind": "bench",
        "device": device_name(place),
        "memory_bytes": memory,
        "image_size": at.image_size,
        "images_per_second": {model: rate for model, rate in best.items() if rate},
        "peak_flops": peaks,
        "sizes": [asdict(one) for one in found],
        "ways": [asdict(one) for one in tried],
        "where": {**commit(), "versions": versions(), "started": started, "finished": now()},
    }


def recipe(model: str) -> Run:
    """The run of which a step is timed: docs/facts.md, 3, for the paper's sizes, else that of the laptop studies."""
    paper = {"image_size": 192, "window_size": 12, "mask_patch": 32, "target": "normalized", "drop_path": 0.1}
    return Run(model=model, **({} if model in LAPTOP else paper))


def peak(device: torch.device, precision: str) -> float:
    """FLOP a second of a square matrix product: the best of twenty."""
    side = {"cuda": 8192, "cpu": 1024}.get(device.type, 2048)
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * side**3 / min(timed(lambda: a @ a, device) for _ in range(20))


def fitted(model: str, way: Way, device: torch.device, peaks: dict, batches: Sequence[int], steps: int) -> Speed:
    """The speed at the first of `batches` that fits the device's memory."""
    for batch in batches:
        found = speed(model, way, device, peaks, batch, steps)
        if found.reason != _FULL:
            break
    return found


def speed(model: str, way: Way, device: torch.device, peaks: dict[str, float], batch: int, steps: int) -> Speed:
    """Images a second of a way at one batch: the median step. What does not run says why."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    rate = share = None
    try:
        rate, reason = batch / seconds(model, way, device, batch, steps), ""
        run = recipe(model)
        share = 6e9 * SIZES[model].gmac(run.image_size, run.window_size, head=True) * rate / peaks[way.precision]
    except (UserError, RuntimeError, NotImplementedError) as error:  # no memory, no such backend, a compiler's
        text = str(error) if isinstance(error, UserError) else first_line(error).split(": ", 1)[-1].split(". ")[0][:100]
        reason = _FULL if any(word in str(error) for word in (_FULL, "not enough memory")) else text
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return Speed(model, way.name, batch, rate, share, memory, reason)


def seconds(model: str, way: Way, device: torch.device, batch: int, steps: int) -> float:
    """Of the median step."""
    run = replace(recipe(model), precision=way.precision, batch_size=batch)
    images = example(run, device)
    with attention(way.attention), target(way.pooled_target):
        net = build(run).to(device).train()
        optimiser = build_optimiser(net, run)
        parallel = Parallel(net, Group(device), Runtime(compile=way.compile, checkpointing=way.checkpointing))
        if run.drop_path:
            images += (torch.rand(batch, sum(SIZES[model].depths), 2, device=device),)
        times = [timed(lambda: step(parallel, optimiser, images, 0.0, run), device) for _ in range(_WARM + steps)]
    return statistics.median(times[_WARM:])


@contextlib.contextmanager
def attention(way: str) -> Iterator[None]:
    """Inside, blocks compute attention in the way that is asked for."""
    own = swin.window_attention
    ways = {"own": own, "reference": reference_attention, "flex": flex_attention}
    swin.window_attention = (ways | dict.fromkeys(_BACKENDS, sdpa_attention))[way]
    try:
        with sdpa_kernel([_BACKENDS[way]]) if way in _BACKENDS else contextlib.nullcontext():
            yield
    finally:
        swin.window_attention = own


@contextlib.contextmanager
def target(pooled: bool) -> Iterator[None]:
    """Inside, the normalised target comes from poolings."""
    own = simmim.normalize_locally
    simmim.normalize_locally = pooled_target if pooled else own
    try:
        yield
    finally:
        simmim.normalize_locally = own


@torch.no_grad()
def pooled_target(images: Tensor, window: int = 47) -> Tensor:
    """`simmim.normalize_locally` as it is defined (docs/facts.md, 5): means and counts by poolings of a window."""
    options = {"kernel_size": window, "stride": 1, "padding": window // 2}
    with torch.autocast(images.device.type, enabled=False):
        images = images.float()
        mean, square = (F.avg_pool2d(x, count_include_pad=False, **options) for x in (images, images.square()))
        count = F.avg_pool2d(torch.ones_like(images), count_include_pad=True, **options) * window**2
        variance = ((square - mean.square()) * (count / (count - 1))).clamp_min(0)
        return (images - mean) / (variance + 1e-6).sqrt()


def flex_attention(qkv: Tensor, heads: int, scale: Tensor, bias: Tensor, mask: Tensor | None) -> Tensor:
    """`attention.window_attention` by FlexAttention: bias and mask are read where a score is made, and never added up
    into one tensor. As `reference_attention`; it is fused only inside torch.compile."""
    from torch.nn.attention.flex_attention import flex_attention as flex

    batch, windows = qkv.shape[:2]
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(3, 0, 1, 4, 2, 5).flatten(1, 2)
    q = (F.normalize(q.float(), dim=-1) * scale[:, None, None]).to(v.dtype)
    k = F.normalize(k.float(), dim=-1).to(v.dtype)
    rows = torch.arange(batch * windows, device=qkv.device) % windows

    def score(value: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        value = value + bias[h, i, j]
        return value if mask is None else value + mask[rows[b], i, j]

    out = flex(q, k, v, score_mod=score, scale=1.0)
    return out.view(batch, windows, heads, *out.shape[-2:]).transpose(2, 3).flatten(3)


def _line(name: str, one: Speed, plain: float | None = None) -> str:
    if one.images_per_second is None:
        return f"{name:56s}{one.batch:6d}  {one.reason}"
    memory = "–" if one.memory_bytes is None else f"{one.memory_bytes / 2**30:.1f} GiB"
    ratio = f"{one.images_per_second / plain:9.2f}" if plain else ""
    return f"{name:56s}{one.batch:6d}{one.images_per_second:10.1f}{one.share_of_peak:9.1%}{memory:>10s}{ratio}"


if __name__ == "__main__":
    sys.exit(main())
