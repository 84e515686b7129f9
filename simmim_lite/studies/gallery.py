"""Static pictures: one PNG a study and the README's figure, drawn from the published and the shipped records."""

from pathlib import Path

from ..errors import UserError
from ..evidence import compare, plots, shipped, sides, transfer_charts, transfers
from ..training.run import write_atomic
from .grids import TRANSFER

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
    evidence = {kind: rows for kind, rows in sides.rows().items() if kind in ("published", "shipped") and rows}
    if "shipped" not in evidence:
        raise UserError("no records are shipped with this version: there is nothing to draw the gallery from")
    figures = {study: compare.figure(study, evidence) for study in compare.STUDIES}
    figures[TRANSFER] = transfer_charts.gains(
        transfers.differences(transfers.transfers(shipped.records(shipped.TRANSFER)))
    )
    figures["readme"] = plots.proxy(evidence["shipped"])
    written = [_png(figure, out / f"{name}.png") for name, figure in figures.items()]
    write_atomic(out / "gallery.md", gallery_page(evidence))
    return [*written, out / "gallery.md"]


def gallery_page(evidence: dict[str, list[dict]]) -> str:
    """The page of the pictures, in Markdown; what each shows is counted from the rows by kind."""
    said = []
    for kind, rows in evidence.items():
        seeds = len({row["seed"] for row in rows})
        of = f"{len(rows)} runs" if kind == "published" else f"{len(rows)} runs of {seeds} seeds on {rows[0]['data']}"
        said.append(f"{compare.KINDS[kind].lower()}: {of}")
    parts = [
        "# Gallery\n",
        f"Drawn by `simmim-lite gallery` from the {'; '.join(said)}. Bars are one standard error.\n",
    ]
    parts += [f"## {question}\n\n![{question}]({study}.png)\n" for study, question in QUESTIONS.items()]
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
