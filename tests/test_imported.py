"""Somebody else's runs: what is read, what is refused and how, and what is claimed on them."""

from importlib.resources import files
from pathlib import Path

import pytest

from simmim_lite.cli import main
from simmim_lite.errors import UserError
from simmim_lite.evidence import imported, published

HEADER = "model,unique_images,iterations,batch_size,val_loss,score\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "theirs.csv"
    path.write_text(text)
    return path


def test_the_published_file_can_be_imported(tmp_path) -> None:
    path = Path(str(files("simmim_lite.evidence") / "published_runs.csv"))
    rows = imported.read_csv(path)
    for mine, theirs in zip(published.rows(), rows, strict=True):
        for name in ("model", "params", "images", "steps", "images_seen", "val_loss", "finetune"):
            assert theirs[name] == pytest.approx(mine[name]) if name == "finetune" else theirs[name] == mine[name]
    claims = {claim.id: claim for claim in imported.claims(rows)}
    assert claims["C3"].verdict == claims["C7"].verdict == "holds"
    assert imported.import_csv(path, tmp_path) == 63
    assert list(imported.load(tmp_path)) == ["published_runs"]
    assert imported.load(tmp_path)["published_runs"] == rows


def test_parameters_instead_of_names_other_headers_and_semicolons(tmp_path) -> None:
    text = "Parameters;Images;Steps;Batch size;Validation loss;Linear probe\n5e6;1_000;100;64;0.5;0.25\n"
    (row,) = imported.read_csv(write(tmp_path, text))
    assert (row["model"], row["params"], row["images"], row["linear"]) == ("5 M", 5_000_000, 1000, 0.25)
    assert row["finetune"] is None
    assert imported.score_of([row]) == "linear"


def test_per_cent_and_fractions(tmp_path) -> None:
    lines = "swinv2_small,64,100,64,.5,{}\nswinv2_small,64,200,64,.4,{}\n"
    for low, high in ((12.5, 80), (0.125, 0.8)):
        rows = imported.read_csv(write(tmp_path, HEADER + lines.format(low, high)))
        assert [row["finetune"] for row in rows] == pytest.approx([0.125, 0.8])


def test_seeds_are_paired_where_there_are_several(tmp_path) -> None:
    lines = [
        f"{model},{images},1000,64,{loss + seed / 1000},.5,{seed}"
        for seed in range(3)
        for model, images, loss in (("atto", 64, 0.5), ("pico", 64, 0.6), ("atto", 4096, 0.4), ("pico", 4096, 0.3))
    ]
    rows = imported.read_csv(write(tmp_path, HEADER.strip() + ",seed\n" + "\n".join(lines) + "\n"))
    claims = {claim.id: claim for claim in imported.claims(rows)}
    assert claims["C1"].effect == pytest.approx(0.2) and "0.1000 above the smaller" in claims["C1"].evidence
    assert claims["C2"].effect == pytest.approx(-0.1)
    assert "3 seeds: 0, 1, 2" in claims["C1"].evidence and claims["C1"].n == 3
    assert claims["C3"].verdict == "not tested here" and "4,096 images and 500 steps" in claims["C3"].evidence


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty: the first line must name the columns"),
        ("model,images\na,1\n", "no column iterations, or one of steps, iters, train_steps; its"),
        ("unique_images,iterations,batch_size,val_loss\n", "no column model or params"),
        (HEADER, "has no runs below its first line"),
        (HEADER + "swinv2_small,64,100,64,low,.5\n", "line 2: val_loss is 'low': give a number from 0"),
        (HEADER + "swinv2_small,64,100,64,,.5\n", "line 2: no val_loss; fill it in"),
        (HEADER + "swinv2_small,0,100,64,.5,.5\n", "line 2: unique_images is '0': give a whole number from 1"),
        (HEADER + "swinv2_small,64,1.5,64,.5,.5\n", "line 2: iterations is '1.5': give a whole number from 1"),
        (HEADER + "swinv2_small,64,100,64,.5,120\n", "line 2: score is 120: give a fraction of 1 or per cent"),
        (HEADER + "vit_tiny,64,100,64,.5,.5\n", "line 2: model 'vit_tiny' has no params"),
        (HEADER + "swinv2_small,64,100,64,.5,.5\n" * 2, "line 3: the same run as line 2"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(tmp_path, text, said) -> None:
    with pytest.raises(UserError) as error:
        imported.import_csv(write(tmp_path, text), tmp_path / "runs")
    assert said in str(error.value)
    assert "theirs.csv" in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_the_command(tmp_path, capsys) -> None:
    path = write(tmp_path, HEADER + "swinv2_small,64,1000,64,.5,.5\nswinv2_small,64,2000,64,.6,.6\n")
    assert main(["records", "import", str(path), "--runs-dir", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "2 runs taken from" in said
    assert "C7" in said
    assert main(["records", "import", str(tmp_path / "none.csv")]) == 2
    assert "none.csv: cannot be read (No such file or directory)" in capsys.readouterr().err
