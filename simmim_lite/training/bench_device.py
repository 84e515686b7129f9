"""Pretraining steps at full speed on one device: images a second by size, and what each means to speed is worth.

Written for GPUs; the same code runs on a CPU. Everything is measured in one process on one device, beside the peak of
a matrix product that is measured there too.
"""

import contextlib
import gc
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import UserError
from ..model import simmim, swin
from ..model.attention import reference_attention, sdpa_attention
from ..model.sizes import LAPTOP, SIZES
from .bench import example, timed
from .building import build, build_optimiser
from .device import one_thread, pick_device
from .distributed import Team
from .meter import commit, device_name, now, versions
from .parallel import Parallel
from .pretrain import training_step
from .run import Run
from .runtime import Runtime

#: Images of a step, tried from the left until they fit.
BATCHES = (512, 256, 128, 64, 32, 16, 8)
_BACKENDS = {
    "SDPA, memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
    "SDPA, cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA, plain products": SDPBackend.MATH,
}
_WARM = 3  # steps before the clock starts: compilation, the allocator
_PEAK_SIDE = {"cuda": 8192, "cpu": 1024}


@dataclass(frozen=True)
class Way:
    """How a step is taken. As it comes, it is how training takes it by default."""

    name: str
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
    share_of_peak: float | None  # of the bf16 (or fp32) matrix product measured in the same process
    memory_bytes: int | None  # peak of the device; None on a CPU
    reason: str = ""  # why it did not run


#: What speed is compared with: each operation by itself, as the paper writes it.
PLAIN = Way("plain eager", attention="reference", pooled_target=True)
_DEFAULT = Way("as trained by default")
WAYS = (
    PLAIN,
    replace(PLAIN, name="plain eager, fp32", precision="fp32"),
    _DEFAULT,
    replace(_DEFAULT, name="+ compile", compile=True),
    replace(_DEFAULT, name="+ compile, checkpointing", compile=True, checkpointing=True),
    replace(_DEFAULT, name="+ checkpointing", checkpointing=True),
    replace(_DEFAULT, name="fp32 in place of bf16", precision="fp32"),
    replace(_DEFAULT, name="pooled target", pooled_target=True),
    *(replace(_DEFAULT, name=name, attention=name) for name in _BACKENDS),
    replace(_DEFAULT, name="FlexAttention, + compile", attention="flex", compile=True),
    replace(_DEFAULT, name="attention as written", attention="reference"),
)
#: Those that each size is measured in.
_FITTED = (_DEFAULT, *(way for way in WAYS if way.name in ("+ compile", "+ compile, checkpointing")))


def bench_device(
    device: str,
    models: Sequence[str],
    *,
    ways_of: str | None = None,
    batches: Sequence[int] = BATCHES,
    steps: int = 10,
    record: dict | None = None,
) -> Iterator[str]:
    """Two tables, line by line as they are measured: each size at the batch that fits, and each way at one size.

    models: sizes of one ladder (laptop: 32 px; the paper's: 192 px, window 12, normalised target). ways_of: the size of
    the second table, the middle one of `models` by default. record: a dict that gets everything, with its provenance.
    """
    place = pick_device(device)
    if steps < 1:
        raise UserError(f"rounds is {steps}: give at least 1")
    if not models or len({m in LAPTOP for m in models}) > 1:
        raise UserError("sizes are of two ladders: give laptop sizes (32 px), or the paper's (192 px)")
    at = recipe(models[0])
    chosen = ways_of or models[len(models) // 2]
    started, found, tried = now(), [], []
    with one_thread(place):
        peaks = {p: peak(place, p) for p in ("bf16", "fp32")}
        memory = torch.cuda.get_device_properties(place).total_memory if place.type == "cuda" else None
        size = f", {memory / 2**30:.0f} GiB" if memory else ", one thread"
        yield f"{device_name(place)}{size}, torch {torch.__version__}"
        yield ", ".join(f"{p} matrix product {peaks[p] / 1e12:.3g} TFLOP/s" for p in peaks)
        yield ""
        yield f"{at.image_size} px, window {at.window_size}: forward, backward and AdamW, target counted"
        yield _head("size and way, share of the peak of its own precision")
        for model in models:
            for way in _FITTED:
                found.append(fitted(model, way, place, peaks, batches, steps))
                yield _line(f"{model}, {way.name}", found[-1])
        yield ""
        own = max((s for s in found if s.model == chosen and s.way == _DEFAULT.name), key=lambda s: s.batch)
        yield f"{chosen}, batch {own.batch}: one thing changed at a time, and the first line again at the end"
        yield _head("way", "x plain")
        for way in (*WAYS, WAYS[0]):
            tried.append(speed(chosen, way, place, peaks, own.batch, steps))
            yield _line(way.name, tried[-1], tried[0].images_per_second)
    if record is not None:
        best: dict[str, float] = {}
        for one in found:
            if one.images_per_second:
                best[one.model] = max(best.get(one.model, 0), one.images_per_second)
        record |= {
            "kind": "bench",
            "device": device_name(place),
            "memory_bytes": memory,
            "image_size": at.image_size,
            "images_per_second": best,
            "peak_flops": peaks,
            "sizes": [asdict(one) for one in found],
            "ways": [asdict(one) for one in tried],
            "where": {**commit(), "versions": versions(), "started": started, "finished": now()},
        }


def recipe(model: str) -> Run:
    """The run of which a step is timed: FACTS 3 for the paper's sizes, else that of the laptop studies."""
    if model in LAPTOP:
        return Run(model=model)
    options = {"image_size": 192, "window_size": 12, "mask_patch": 32, "target": "normalized", "drop_path": 0.1}
    return Run(model=model, **options)


def peak(device: torch.device, precision: str) -> float:
    """FLOP a second of a square matrix product: the best of ten."""
    side = _PEAK_SIDE.get(device.type, 2048)
    a = torch.randn(side, side, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2 * side**3 / min(timed(lambda: a @ a, device) for _ in range(10))


def fitted(
    model: str, way: Way, device: torch.device, peaks: dict[str, float], batches: Sequence[int], steps: int
) -> Speed:
    """The speed at the first of `batches` that fits the device's memory."""
    for batch in batches:
        found = speed(model, way, device, peaks, batch, steps)
        if found.reason != _FULL:
            return found
    return found


_FULL = "out of memory"


def speed(model: str, way: Way, device: torch.device, peaks: dict[str, float], batch: int, steps: int) -> Speed:
    """Images a second of a way at one batch: the median step. What does not run says why."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    try:
        seconds, reason = _seconds(model, way, device, batch, steps), ""
    except UserError as error:
        seconds, reason = None, str(error)
    except (RuntimeError, NotImplementedError) as error:  # out of memory, a backend that is not there, a compiler's
        text = str(error).strip().splitlines() or [type(error).__name__]
        full = isinstance(error, torch.OutOfMemoryError) or "out of memory" in text[0] or "not enough memory" in text[0]
        seconds, reason = None, _FULL if full else text[0].split(". ")[0][:100]
    memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    _tidy(device)
    if seconds is None:
        return Speed(model, way.name, batch, None, None, memory, reason)
    run = recipe(model)
    flop = 6e9 * SIZES[model].gmac(run.image_size, run.window_size, head=True)
    return Speed(model, way.name, batch, batch / seconds, flop * batch / seconds / peaks[way.precision], memory)


def _seconds(model: str, way: Way, device: torch.device, batch: int, steps: int) -> float:
    run = replace(recipe(model), precision=way.precision, batch_size=batch)
    images, mask = example(run, device)
    with _attention(way.attention), _target(way.pooled_target):
        net = build(run).to(device).train()
        optimiser = build_optimiser(net, run)
        runtime = Runtime(compile=way.compile, checkpointing=way.checkpointing)
        parallel = Parallel(net, Team(device), runtime, run.precision)
        noise = torch.rand(batch, sum(SIZES[model].depths), 2, device=device) if run.drop_path else None

        def step() -> None:
            training_step(parallel, optimiser, images, mask, run, 0.0, noise)

        for _ in range(_WARM):
            timed(step, device)
        return statistics.median(timed(step, device) for _ in range(steps))


@contextlib.contextmanager
def _attention(way: str) -> Iterator[None]:
    """Inside, blocks compute attention in the way that is asked for."""
    own = swin.window_attention
    others = {"own": own, "reference": reference_attention, "flex": flex_attention}
    backend = _BACKENDS.get(way)
    swin.window_attention = others.get(way, sdpa_attention)
    try:
        with sdpa_kernel([backend]) if backend else contextlib.nullcontext():
            yield
    finally:
        swin.window_attention = own


@contextlib.contextmanager
def _target(pooled: bool) -> Iterator[None]:
    own = simmim.normalize_locally
    simmim.normalize_locally = pooled_target if pooled else own
    try:
        yield
    finally:
        simmim.normalize_locally = own


@torch.no_grad()
def pooled_target(images: Tensor, window: int = 47) -> Tensor:
    """`simmim.normalize_locally` as it is defined (FACTS 5): means and counts by poolings of window x window pixels."""
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


def _tidy(device: torch.device) -> None:
    torch._dynamo.reset()
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def _head(first: str, *more: str) -> str:
    return f"{first:56s}{'batch':>6s}{'images/s':>10s}{'of peak':>9s}{'memory':>10s}" + "".join(
        f"{m:>9s}" for m in more
    )


def _line(name: str, one: Speed, plain: float | None = None) -> str:
    if one.images_per_second is None:
        return f"{name:56s}{one.batch:6d}  {one.reason}"
    memory = "–" if one.memory_bytes is None else f"{one.memory_bytes / 2**30:.1f} GiB"
    ratio = f"{one.images_per_second / plain:9.2f}" if plain else ""
    return f"{name:56s}{one.batch:6d}{one.images_per_second:10.1f}{one.share_of_peak:9.1%}{memory:>10s}{ratio}"
