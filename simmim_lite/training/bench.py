"""Speed, measured: ratios of two ways taken in turns in one run, because machines are noisy and ratios are not."""

import statistics
import time
from collections.abc import Callable

import torch

from ..errors import UserError
from ..model.masking import hash_masks, upsample
from ..model.simmim import create_model
from ..model.sizes import LAPTOP, SIZES
from .meter import device_name, keep_freed_memory
from .pretrain import build, build_optimiser, pick_device, training_step
from .run import PRECISIONS, Run


def step_seconds(run: Run, device: str = "cpu", steps: int = 4) -> float:
    """Seconds of one optimiser step of a run, batch assembly not counted: the fastest of a few."""
    images, mask = _batch(run, device)
    model = build(run).to(device).train()
    optimiser = build_optimiser(model, run)
    return min(
        _timed(lambda: training_step(model, optimiser, images, mask, run, 0.0), device) for _ in range(steps + 1)
    )


def bench(device: str = "auto", rounds: int = 5) -> list[str]:
    """The table that `make bench` prints, line by line as text."""
    chosen = pick_device(device)
    if chosen.type != "cpu":
        raise UserError(f"bench --device {device}: this table is for the CPU; use --device cpu")
    torch.set_num_threads(1)
    keep_freed_memory()
    lines = [f"{device_name(chosen)}, one thread, torch {torch.__version__}", ""]
    peaks = {p: matmul_peak(p) for p in PRECISIONS}
    lines += [f"matrix product 1024^3    {p}  {peaks[p]:7.0f} GFLOP/s" for p in PRECISIONS]
    lines += ["", *against_transformers(peaks, rounds), "", *ladder(rounds)]
    return lines


def matmul_peak(precision: str, side: int = 1024) -> float:
    """GFLOP/s of a square matrix product: what this core can do at best."""
    a = torch.randn(side, side, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    return 2e-9 * side**3 / min(_timed(lambda: a @ a, "cpu") for _ in range(20))


def against_transformers(peaks: dict[str, float], rounds: int) -> list[str]:
    """swinv2_small, 192 px, batch 4: our step, normalised target on, against transformers'."""
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
    lines = [
        "swinv2_small, 192 px, batch 4, forward + backward + AdamW",
        "            transformers        ours   ratio   of matmul peak",
    ]
    for precision in PRECISIONS:
        run = Run(
            model="swinv2_small", image_size=192, window_size=12, mask_patch=32, batch_size=4, precision=precision
        )
        images, mask = _batch(run, "cpu")
        optimisers = [torch.optim.AdamW(m.parameters(), 1e-4, fused=True) for m in (theirs, ours)]

        def step(model, optimiser, loss: Callable) -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):  # noqa: B023 called in this round
                value = loss(model)
            value.backward()
            optimiser.step()
            optimiser.zero_grad()

        flat = mask.flatten(1)
        ways = [
            lambda: step(theirs, optimisers[0], lambda m: m(images, bool_masked_pos=flat).loss),  # noqa: B023
            lambda: step(ours, optimisers[1], lambda m: m(images, mask)),  # noqa: B023
        ]
        times = in_turns(ways, rounds)
        ratio = statistics.median(a / b for a, b in zip(*times, strict=True))
        share = 6 * size.gmac(192, 12, head=True) * 4 / min(times[1]) / peaks[precision]
        lines.append(
            f"{precision}        {min(times[0]):8.3f} s  {min(times[1]):8.3f} s   {ratio:5.2f}   {share:14.0%}"
        )
    return lines


def ladder(rounds: int) -> list[str]:
    """The laptop sizes at 32 px, batch 64: images a second, and batch assembly as a share of the step."""
    lines = ["laptop ladder, 32 px, batch 64     images/s fp32   images/s bf16   batch assembly / step"]
    assembly = assembly_seconds(Run())
    for name in LAPTOP:
        seconds = {p: step_seconds(Run(model=name, precision=p), steps=rounds) for p in PRECISIONS}
        rates = "   ".join(f"{Run().batch_size / seconds[p]:13.0f}" for p in PRECISIONS)
        lines.append(f"{name:30s}   {rates}   {assembly / min(seconds.values()):12.1%}")
    return lines


def assembly_seconds(run: Run) -> float:
    """Seconds to assemble one batch of scenes: order, flip, normalise, masks."""
    from ..data.sources import open_data
    from .pretrain import make_batches

    batches = make_batches(run, open_data(run.data, run.image_size))
    return statistics.median(_timed(lambda i=i: batches.batch(i), "cpu") for i in range(50))


def in_turns(ways: list[Callable[[], object]], rounds: int) -> list[list[float]]:
    """Seconds of each way, taken in turns after one warm-up each: [[way 0's], [way 1's], ...]."""
    for way in ways:
        way()
    times: list[list[float]] = [[] for _ in ways]
    for _ in range(rounds):
        for way, seconds in zip(ways, times, strict=True):
            seconds.append(_timed(way, "cpu"))
    return times


def _batch(run: Run, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(run.batch_size, 3, run.image_size, run.image_size, generator=torch.Generator().manual_seed(0))
    grid = (run.image_size // run.mask_patch,) * 2
    cells = hash_masks(grid, run.mask_ratio, 0, torch.arange(run.batch_size).numpy())
    mask = torch.from_numpy(upsample(cells, run.mask_patch // SIZES[run.model].patch_size))
    return images.to(device), mask.to(device)


def _timed(call: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    call()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started
