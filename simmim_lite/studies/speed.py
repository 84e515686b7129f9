"""Images a second of training, by size: as `bench` times a step, or as a study left them. Torch only to measure."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ..errors import UserError
from ..training.run import Run

#: Recipe of a timed step by image size: the published one (FACTS 3), else that of the laptop studies.
_AT = {192: {"window_size": 12, "mask_patch": 32, "target": "normalized", "batch_size": 32}}


def measure(models: Iterable[str], image_size: int, device: str = "auto") -> tuple[dict[str, float], str]:
    """Images a second of one device by model, batches not counted, and the device's name.

    bf16 on a GPU, fp32 elsewhere. A batch that does not fit is halved; a size that does not fit at all is left out, and
    on a CPU only the smallest size is timed above 32 px: others are scaled by their FLOPs.
    """
    from ..training.bench import step_seconds
    from ..training.device import one_thread, pick_device
    from ..training.meter import device_name

    try:
        place, found = pick_device(device), {}
    except UserError as error:
        raise UserError(
            f"--measure {device}: not on this machine; give --measure cpu, or --images-per-second"
        ) from error
    run = Run(image_size=image_size, precision="bf16" if place.type == "cuda" else "fp32", **_AT.get(image_size, {}))
    for model in list(models)[: 1 if place.type == "cpu" and image_size > 32 else None]:
        batch = run.batch_size if place.type != "cpu" or image_size <= 32 else 4
        while batch and model not in found:
            try:
                with one_thread(place):
                    seconds = step_seconds(replace(run, model=model, batch_size=batch), str(place))
                found[model] = batch / seconds
            except RuntimeError as error:  # torch's out of memory is one
                if "out of memory" not in str(error):
                    raise
                batch //= 2
    return found, device_name(place)


def measured(runs_dir: str | Path, image_size: int) -> tuple[dict[str, float], str]:
    """Images a second by model that this machine was measured at (RUNS_DIR/machine.json), and on which device.

    The faster precision counts; of several devices the fastest. ({}, "") where nothing was measured at this size.
    """
    try:
        known = json.loads((Path(runs_dir) / "machine.json").read_text())
    except (OSError, ValueError):
        return {}, ""
    best: tuple[dict[str, float], str] = ({}, "")
    for name, speeds in known.items():
        device, _, batch, _, size = name.rsplit(" ", 4)
        if int(size) != image_size:
            continue
        found: dict[str, float] = {}
        for key, seconds in speeds.items():
            model = key.split(" ")[0]
            found[model] = max(found.get(model, 0), int(batch) / seconds)
        if sum(found.values()) > sum(best[0].values()):
            best = found, device
    return best
