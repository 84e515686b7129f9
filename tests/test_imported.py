"""Somebody else's runs: what is read, what is refused and how, and what is claimed on them."""

from pathlib import Path

import pytest

from simmim_lite.cli import main
from simmim_lite.errors import UserError
from simmim_lite.evidence import imported, published
from simmim_lite.evidence.records import FOLDER

HEADER = "model,unique_images,iterations,batch_size,val_loss,score\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "theirs.csv"
    path.write_text(text)
    return path


def test_the_published_file_can_be_imported(tmp_path) -> None:
    path = Path(str(FOLDER.parent / "published_runs.csv"))
    rows = imported.read_csv(path)
    for mine, theirs in zip(published.rows(), rows, strict=True):
        for name in ("model", "params", "images", "steps", "images_seen", "val_loss"):
            assert theirs[name] == mine[name]
        assert theirs["finetune"] == pytest.approx(mine["finetune"])
    claims = {claim.id: claim for claim in imported.claims(rows)}
    assert claims["C3"].verdict == claims["C7"].verdict == "holds"
    assert imported.import_csv(path, tmp_path) == 63
    assert imported.load(tmp_path) == {"published_runs": rows}


def test_other_headers_semicolons_and_what_is_not_used(tmp_path) -> None:
    text = "Parameters;Images;Steps;Batch size;Validation loss;Linear probe;notes\n5e6;1_000;100;64;0.5;0.25;x\n"
    (row,), notes = imported.read(write(tmp_path, text))
    assert (row["model"], row["params"], row["images"], row["linear"]) == ("5 M", 5_000_000, 1000, 0.25)
    assert row["finetune"] is None and notes[1] == "not used: notes"


@pytest.mark.parametrize(
    ("header", "low", "high", "scores", "wanted"),
    [
        ("score", 12.5, 80, None, (0.125, 0.8)),
        ("score", 0.125, 0.8, None, (0.125, 0.8)),
        ("score", 0, 80, None, (0, 0.8)),
        ("score", 0.5, 80, "percent", (0.005, 0.8)),
        ("score", 0.1, 0.8, "percent", (0.001, 0.008)),
        ("Top1 (%)", 12.5, 80, None, (0.125, 0.8)),
        ("Top1 (%)", 0.125, 0.8, "share", (0.125, 0.8)),
        ("linear_probe_percent", 12.5, 80, None, (0.125, 0.8)),
        ("score", "", "", None, (None, None)),
    ],
)
def test_per_cent_and_fractions(tmp_path, header, low, high, scores, wanted) -> None:
    """As they are read, said and kept: what was imported once is read back the same."""
    lines = f"swinv2_small,64,100,64,.5,{low}\nswinv2_small,64,200,64,.4,{high}\n"
    path = write(tmp_path, HEADER.replace("score", header) + lines)
    rows, (note,) = imported.read(path, scores)
    score = "linear" if "linear" in header else "finetune"
    assert [row[score] for row in rows] == pytest.approx(list(wanted))
    unit = "per cent" if scores == "percent" or high == 80 else "shares of 1"
    assert (f"read as {unit}" if high else "no scores") in note
    imported.import_csv(path, tmp_path, scores)
    assert imported.load(tmp_path)["theirs"] == rows


def test_two_files_of_one_name_do_not_replace_each_other(tmp_path) -> None:
    first, other = (HEADER + f"swinv2_small,64,100,64,{loss},.5\n" for loss in (0.5, 0.6))
    assert [imported.import_csv(write(tmp_path, first), tmp_path) for _ in range(2)] == [1, 1]  # the same again
    with pytest.raises(UserError, match=r"imported/theirs.csv holds other runs than"):
        imported.import_csv(write(tmp_path, other), tmp_path)


def test_seeds_are_paired_where_there_are_several(tmp_path) -> None:
    lines = [
        f"{model},{images},1000,64,{loss + seed / 1000},.5,{seed}"
        for seed in range(3)
        for model, images, loss in (("atto", 64, 0.5), ("pico", 64, 0.6), ("atto", 4096, 0.4), ("pico", 4096, 0.3))
    ]
    rows = imported.read_csv(write(tmp_path, HEADER.strip() + ",seed\n" + "\n".join(lines) + "\n"))
    claims = {claim.id: claim for claim in imported.claims(rows)}
    assert claims["C1"].effect == pytest.approx(0.2) and claims["C2"].effect == pytest.approx(-0.1)
    assert "3 seeds: 0, 1, 2" in claims["C1"].evidence and claims["C1"].n == 3
    assert claims["C3"].verdict == "not tested here" and "4,096 images and 500 steps" in claims["C3"].evidence


LINE = "swinv2_small,64,100,64,.5,.5\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("model,images,los\na,1,2\n", "no column iterations, batch_size, val_loss; its columns are model, images, los"),
        ("images,steps,batch\n1,1,1\n", "no column val_loss, model or params"),
        ("model,images,steps,batch,loss,Loss\n", "has 2 columns loss"),
        (HEADER, "has no runs"),
        (HEADER + LINE.replace(",.5,", ",low,"), "line 2: val_loss is 'low': give a number from 0"),
        (HEADER + LINE.replace(",.5,", ",,"), "line 2: val_loss is ''"),
        (HEADER + LINE.replace(",.5,", ",nan,"), "val_loss is 'nan'"),
        (HEADER + LINE.replace(",64,100", ",0,100"), "line 2: unique_images is '0': give a whole number from 1"),
        (HEADER + LINE.replace(",64,100", ",1281k,100"), "unique_images is '1281k'"),
        (HEADER + LINE.replace(",100,", ",1.5,"), "line 2: iterations is '1.5': give a whole number from 1"),
        (HEADER + LINE.replace(".5\n", "120\n"), "score is 120"),
        (HEADER + LINE.replace(".5\n", ".835\n,,,,,\nswinv2_small,64,200,64,.5,84.1\n"), "from 0.835 to 84.1"),
        (HEADER.replace("score", "top-1 (%)") + LINE, "does not tell whether in per cent: add --scores percent"),
        (HEADER + LINE.replace(".5\n", "83.5%\n"), "score is '83.5%'"),
        (HEADER + LINE.replace(",64,100", ",1,281,167,100"), "line 2: 8 cells under 6 columns"),
        (HEADER + LINE.replace(",.5\n", "\n"), "line 2: 5 cells under 6 columns: write numbers without commas in"),
        ("params," + HEADER + "87,vit_base,64,100,64,.5,.5\n", "params is '87': give a whole number from 1000"),
        ("params," + HEADER + "87000,swinv2_base,64,100,64,.5,.5\n", "params is 87000: give the number itself"),
        ("flops," + HEADER + "4.3,swinv2_base,64,100,64,.5,.5\n", "flops is 4.3, less than parameters times"),
        (HEADER + LINE.replace("swinv2_small", "vit_tiny"), "line 2: model 'vit_tiny' has no params"),
        (HEADER + LINE * 2, "line 3: the same run as line 2"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path, text, said) -> None:
    with pytest.raises(UserError) as error:
        imported.import_csv(write(tmp_path, text), tmp_path / "runs")
    assert said in str(error.value) and "theirs.csv" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_the_command_its_help_and_the_example(tmp_path, capsys) -> None:
    example = Path(__file__).resolve().parents[1] / "examples" / "runs.csv"
    assert set(example.read_text().splitlines()[0].split(",")) <= imported.COLUMNS.keys()
    assert all(row["flops"] and row["finetune"] for row in imported.read_csv(example))
    assert main(["records", "import", str(example), "--runs-dir", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "18 runs taken from" in said and "C7" in said and "read as per cent" in said
    assert main(["records", "import", str(tmp_path / "none.csv")]) == 2
    assert "none.csv: cannot be read (No such file or directory)" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["records", "import", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "examples/runs.csv" in said and all(name in said for name in imported.COLUMNS)
