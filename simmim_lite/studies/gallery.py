"""Static pictures: one PNG a study and the README's figure, drawn from the published and the shipped records."""

from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import UserError
from ..evidence import figures, shipped, tables, transfers
from ..training.run import write_atomic
from .grids import TRANSFER
from .notebooks import NOTEBOOKS

if TYPE_CHECKING:
    import pandas as pd

WIDTH = 1180  # pixels; drawn at twice that, for sharp screens
QUESTIONS = {
    "data-scale": "How much data does masked image modelling need?",
    "model-size": "Is a larger network always better?",
    "schedule": "Does longer training help, and when does it hurt?",
    "proxy": "Can a pretraining loss tell which network is better?",
    TRANSFER: "What is pretraining worth, task by task?",
}


def make_gallery(out: str | Path = "gallery") -> list[Path]:
    """Write OUT/STUDY.png of every study, OUT/readme.png and OUT/gallery.md with captions; the files written.

    Captions are computed from the records. `UserError` where no records are shipped, where OUT cannot be written, and
    where kaleido or the browser that it draws with is missing.
    """
    out = Path(out)
    frame = tables.runs()
    if "shipped" not in set(frame["source"]):
        raise UserError("no records are shipped with this version: there is nothing to draw the gallery from")
    longest, ours = tables.longest(frame), frame[frame["source"] == "shipped"]
    gains = transfers.gains(transfers.table(shipped.records(shipped.TRANSFER)))
    drawn = {
        "data-scale": figures.lines(longest, "images", "val_loss", "model"),
        "model-size": figures.lines(longest, "params", "val_loss", "images"),
        "schedule": figures.lines(ours, "steps", "val_loss", "images", panel="model"),
        "proxy": figures.scatter(frame, ["val_loss", "train_loss"], "score", "regime", rank=True),
        TRANSFER: figures.lines(gains, "images", "gain", "model", panel="name", interval=True),
    }
    drawn["readme"] = drawn["model-size"]
    written = [_png(figure, out / f"{name}.png") for name, figure in drawn.items()]
    write_atomic(out / "gallery.md", gallery_page(frame))
    return [*written, out / "gallery.md"]


def gallery_page(frame: "pd.DataFrame") -> str:
    """The page of the pictures, in Markdown; what each shows is counted from the runs by source."""
    said = []
    for source, some in frame.groupby("source"):
        of = "" if source == "published" else f" of {some['seed'].nunique()} seeds on {some['data'].iloc[0]}"
        said.append(f"{figures.SOURCES.get(source, source).lower()}: {len(some)} runs{of}")
    parts = [
        "# Gallery\n",
        f"Drawn by `simmim-lite gallery` from the {'; '.join(said)}. Bars are one standard error, of the "
        "transfer tasks 95 % intervals.\n",
    ]
    for study, question in QUESTIONS.items():
        link = f"[Read the study](../notebooks/{NOTEBOOKS[study]}.ipynb)"
        parts.append(f"## {question}\n\n![{question}]({study}.png)\n\n{link}\n")
    return "\n".join(parts)


def _png(figure, path: Path) -> Path:
    try:
        image = figure.to_image("png", width=WIDTH, height=figure.layout.height or 450, scale=2)
    except Exception as error:  # kaleido raises errors of its own and of the browser's driver
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"pictures need kaleido and Chromium or Chrome ({first}): pip install kaleido, and install a browser"
        ) from error
    write_atomic(path, image)
    return path
