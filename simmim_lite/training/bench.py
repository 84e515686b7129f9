"""Speed, measured: ratios of two ways taken in turns in one run, because machines are noisy."""

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from ..errors import UserError
from ..model.masking import hash_masks, upsample
from ..model.simmim import create_model
from ..model.sizes import LAPTOP, SIZES
from .device import pick_device
from .meter import device_name
from .pretrain import build, build_optimiser, training_step
from .run import PRECISIONS, Run


def step_seconds(run: Run, device: str = "cpu", steps: int = 4) -> float:
    """Seconds of one optimiser step of a run, batch assembly not counted: the fastest of a few."""
    images, mask = example(run, device)
    model = build(run).to(device).train()
    optimiser = build_optimiser(model, run)
    return min(timed(lambda: training_step(model, optimiser, images, mask, run, 0.0), device) for _ in range(steps + 1))


def bench(device: str = "cpu", rounds: int = 9) -> Iterator[str]:
    """The table that `make bench` prints, line by line, as it is measured. Run it in a process of its own."""
    chosen = pick_device(device)
    if chosen.type != "cpu":
        raise UserError(f"bench {device}: this table is for the CPU; `bench_device` has the one for a GPU")
    if rounds < 1:
        raise UserError(f"rounds is {rounds}: give at least 1")
    torch.set_num_threads(1)
    yield f"{device_name(chosen)}, one thread, torch {torch.__version__}"
    peaks = {p: matmul_peak(p) for p in PRECISIONS}
    for precision in PRECISIONS:
        yield f"matrix product 1024^3, {precision}: {peaks[precision]:.0f} GFLOP/s"
    yield ""
    yield "swinv2_small, 192 px, batch 4: forward + backward + AdamW, our normalised target on"
    yield f"{'':18s}{'transformers':>12s}{'ours':>10s}{'ratio':>8s}{'share of peak':>16s}"
    yield from against_transformers(peaks, rounds)
    yield ""
    yield "laptop ladder, 32 px, batch 64"
    yield f"{'':16s}{'images/s fp32':>16s}{'images/s bf16':>16s}{'batch assembly / step':>24s}"
    yield from ladder(rounds)


def matmul_peak(precision: str, side: int = 1024) -> float:
    """GFLOP/s of a square matrix product: what this core can do at best."""
    a = torch.randn(side, side, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2e-9 * side**3 / min(timed(lambda: a @ a, "cpu") for _ in range(20))


def against_transformers(peaks: dict[str, float], rounds: int) -> Iterator[str]:
    """A line a precision: our step against transformers' eager one, same optimiser, in turns; median of the ratios."""
    try:
        from transformers import Swinv2Config, Swinv2ForMaskedImageModeling
    except ImportError:
        raise UserError("the bench compares with transformers: pip install transformers") from None
    size = SIZES["swinv2_small"]
    config = Swinv2Config(
        image_size=192,
        patch_size=4,
        embed_dim=size.embed_dim,
        depths=list(size.depths),
        num_heads=list(size.heads),
        window_size=12,
        encoder_stride=32,
        drop_path_rate=0.0,
    )
    theirs = Swinv2ForMaskedImageModeling(config).train()
    ours = create_model("swinv2_small", 192, 12, target="normalized").train()
    base = Run(model="swinv2_small", image_size=192, window_size=12, mask_patch=32, batch_size=4)
    images, mask = example(base, "cpu")
    flat = mask.flatten(1)
    for precision in PRECISIONS:
        ways = [
            _step(theirs, lambda: theirs(images, bool_masked_pos=flat).loss, precision),
            _step(ours, lambda: ours(images, mask), precision),
        ]
        times = in_turns(ways, rounds)
        ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
        share = 6 * size.gmac(192, 12, head=True) * base.batch_size / min(times[1]) / peaks[precision]
        seconds = "".join(f"{min(t):8.3f} s" for t in times)
        yield f"{precision:20s}{seconds}{ratio:8.2f}{share:16.0%}"


def _step(model: torch.nn.Module, loss: Callable[[], torch.Tensor], precision: str) -> Callable[[], None]:
    """Forward, backward, update: the same for both sides."""
    optimiser = torch.optim.AdamW(model.parameters(), 1e-4, fused=True)

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            value = loss()
        value.backward()
        optimiser.step()
        optimiser.zero_grad()

    return step


def ladder(rounds: int) -> Iterator[str]:
    """The laptop sizes: images a second, and batch assembly as a share of the faster step."""
    assembly = assembly_seconds(Run())
    for name in LAPTOP:
        seconds = {p: step_seconds(Run(model=name, precision=p), steps=rounds) for p in PRECISIONS}
        rates = "".join(f"{Run().batch_size / seconds[p]:16.0f}" for p in PRECISIONS)
        yield f"{name:16s}{rates}{assembly / min(seconds.values()):24.1%}"


def assembly_seconds(run: Run) -> float:
    """Seconds to assemble one batch of scenes: order, flip, normalise, masks."""
    from ..data.sources import open_data
    from .pretrain import make_batches

    batches = make_batches(run, open_data(run.data, run.image_size))
    return statistics.median(timed(lambda i=i: batches.batch(i), "cpu") for i in range(50))


def in_turns(ways: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each way, taken in turns after one warm-up each: [[way 0's], [way 1's], ...]."""
    for way in ways:
        way()
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, seconds in zip(ways, times, strict=True):
            seconds.append(timed(way, "cpu"))
    return times


def example(run: Run, device: str | torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Images of noise (B, 3, S, S) and masks of a run's kind (B, S/p, S/p), on the device."""
    images = torch.randn(run.batch_size, 3, run.image_size, run.image_size, generator=torch.Generator().manual_seed(0))
    grid = (run.image_size // run.mask_patch,) * 2
    cells = hash_masks(grid, run.mask_ratio, 0, torch.arange(run.batch_size).numpy())
    mask = torch.from_numpy(upsample(cells, run.mask_patch // SIZES[run.model].patch_size))
    return images.to(device), mask.to(device)


def timed(call: Callable[[], object], device: str | torch.device) -> float:
    """Seconds of a call, the device's own work counted."""
    kind = torch.device(device).type
    started = time.perf_counter()
    call()
    if kind == "cuda":
        torch.cuda.synchronize()
    elif kind == "mps":
        torch.mps.synchronize()
    return time.perf_counter() - started
