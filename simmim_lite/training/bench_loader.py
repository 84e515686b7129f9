"""Pictures a second of the loader, beside torchvision's: decoded, cropped, flipped, normalised, in batches."""

import contextlib
import io
import tempfile
from collections.abc import Callable, Iterator
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader

from ..data.batches import Streamed
from ..data.packing import Settings, pack
from ..data.sources import catalogue, shelved
from .bench import in_turns
from .probes import IMAGENET_MEAN, IMAGENET_STD

SIZE = 192  # pixels of the input (FACTS 3)
SIDES = (500, 375)  # pixels of a file: a common size in ImageNet
_BATCH, _PICTURES = 32, 256
STEPS = _PICTURES // _BATCH  # of a turn


def bench_loader(rounds: int, folder: str | Path | None = None) -> Iterator[str]:
    """A line a way: pictures a second of one core, and how many times torchvision's. folder: your own images, by class;
    else collages of the photographs that the project ships, in files as ImageNet's."""
    with contextlib.ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="simmim-lite-")))
        root = Path(folder) if folder else collages(place / "files")
        what = folder or f"{_PICTURES} collages of photographs, {SIDES[0]} x {SIDES[1]} px"
        yield f"JPEGs ({what}) to batches of {_BATCH} at {SIZE} px, one core"
        pack(f"imagefolder:{root}", place / "pack", settings=Settings(), workers=1)
        ways = {
            "torchvision: ImageFolder, DataLoader": theirs(root / "train" if (root / "train").is_dir() else root),
            "ours, the same files": ours(f"imagefolder:{root}"),
            "ours, packed at short side 256": ours(f"packed:{place / 'pack'}"),
        }
        times = in_turns(list(ways.values()), rounds)
        base = np.array(times[0])
        for name, seconds in zip(ways, times, strict=True):
            rate = _BATCH * STEPS / min(seconds)
            yield f"{name:40s}{rate:10.0f} pictures/s{float(np.median(base / np.array(seconds))):8.2f}"


def theirs(root: Path) -> Callable[[], None]:
    """torchvision's own pipeline of the same augmentation, as its references have it; no worker but this process."""
    from torchvision import datasets, transforms

    steps = [
        transforms.RandomResizedCrop(SIZE, (0.67, 1), (3 / 4, 4 / 3)),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
    ]
    loader = DataLoader(datasets.ImageFolder(root, transforms.Compose(steps)), batch_size=_BATCH, shuffle=True)

    def go() -> None:
        batches = iter(loader)
        for _ in range(STEPS):
            next(batches)

    return go


def ours(spec: str) -> Callable[[], None]:
    """The loader of pretraining at full size, in this process."""
    found = catalogue(spec)
    train = shelved(found, found.parts.split(spec), "train")
    options = {"seed": 0, "batch_size": _BATCH, "image_size": SIZE, "mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    batches = Streamed(train, np.arange(len(train)), steps=1 << 30, **options)
    step = iter(range(1 << 30))

    def go() -> None:
        for _ in range(STEPS):
            batches.batch(next(step))

    return go


def collages(root: Path) -> Path:
    """train/CLASS/ and val/CLASS/ with JPEGs (quality 95) of parts of the shipped photographs."""
    photos = [Image.open(io.BytesIO(p.read_bytes())).convert("RGB") for p in _photos()]
    rng = np.random.default_rng(0)
    for k in range(_PICTURES + 16):
        folder = root / ("train" if k < _PICTURES else "val") / "ab"[k % 2]
        folder.mkdir(parents=True, exist_ok=True)
        image = Image.new("RGB", SIDES)
        for x in range(0, SIDES[0], 250):
            for y in range(0, SIDES[1], 188):
                photo = photos[rng.integers(len(photos))]
                side = int(min(photo.size) * rng.uniform(0.6, 1))
                left, top = (int(rng.integers(s - side + 1)) for s in photo.size)
                image.paste(photo.resize((250, 188), box=(left, top, left + side, top + side)), (x, y))
        image.save(folder / f"{k}.jpg", quality=95)
    return root


def _photos() -> list:
    return sorted(
        (p for p in files("simmim_lite.lab").joinpath("photos").iterdir() if p.name.endswith(".jpg")), key=str
    )
