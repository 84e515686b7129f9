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
    assert row["finetune"] is None and imported.score_of([row]) == "linear"


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
    unit = "(read as per cent)" if "percent" in (scores, wanted) or high == 80 else "(read as shares of 1)"
    assert unit in note if high else "no scores" in note
    imported.import_csv(path, tmp_path, scores)
    assert imported.load(tmp_path)["theirs"] == rows


def test_what_is_not_used_and_what_looks_like_thousands_is_said(tmp_path) -> None:
    text = "model,images,steps,batch,loss,los,notes,val_acc,accuracy\nswinv2_small,128,100,2048,.5,.6,x,.7,.8\n"
    _, notes = imported.read(write(tmp_path, text.replace("loss", "val_loss").replace("accuracy", "acuracy")))
    assert "1 of them with fewer images than a step takes: are they counted in thousands?" in notes[0]
    assert "128 images, 100 iterations, 2,048 images a step" in notes[0] and "no scores" in notes[0]
    assert notes[1] == "not used: los, notes, val_acc, acuracy"
    assert "column acuracy: if it is accuracy, call it so" in notes


def test_two_files_of_one_name_do_not_replace_each_other(tmp_path) -> None:
    files = []
    for folder, loss in (("a", 0.5), ("b", 0.6)):
        (tmp_path / folder).mkdir()
        files.append(write(tmp_path / folder, HEADER + f"swinv2_small,64,100,64,{loss},.5\n"))
    assert [imported.import_csv(files[0], tmp_path) for _ in range(2)] == [1, 1]  # the same again
    with pytest.raises(UserError, match=r"imported/theirs.csv holds other runs than .*b/theirs.csv: delete it, or"):
        imported.import_csv(files[1], tmp_path)


def test_the_example_and_the_help_name_the_columns(capsys) -> None:
    example = Path(__file__).resolve().parents[1] / "examples" / "runs.csv"
    rows, (note,) = imported.read(example)
    assert set(example.read_text().splitlines()[0].split(",")) <= imported.COLUMNS.keys()
    assert all(row["flops"] and row["finetune"] for row in rows) and "(read as per cent)" in note
    with pytest.raises(SystemExit):
        main(["records", "import", "--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "examples/runs.csv" in said and all(name in said for name in imported.COLUMNS)


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
        (
            "model,images,los\na,1,2\n",
            "no columns iterations (or steps, iters, train_steps), batch_size (or batch), val_loss (or "
            "validation_loss, valid_loss, loss); its columns are model, images, los",
        ),
        ("images,steps,batch\n1,1,1\n", "no columns model or params, val_loss (or"),
        ("model,images,steps,batch,loss,Loss\n", "has 2 columns loss: keep one"),
        ("unique_images,iterations,batch_size,val_loss\n", "no column model or params"),
        (HEADER, "has no runs below its first line"),
        (HEADER + "swinv2_small,64,100,64,low,.5\n", "line 2: val_loss is 'low': give a number from 0"),
        (HEADER + "swinv2_small,64,100,64,,.5\n", "line 2: no val_loss; fill it in"),
        (HEADER + "swinv2_small,0,100,64,.5,.5\n", "line 2: unique_images is '0': give a whole number from 1"),
        (HEADER + "swinv2_small,64,1.5,64,.5,.5\n", "line 2: iterations is '1.5': give a whole number from 1"),
        (HEADER + "swinv2_small,64,100,64,.5,120\n", "line 2: score is 120: give a fraction of 1 or per cent"),
        (HEADER + "swinv2_small,64,100,64,.5,.835\n,,,,,\nswinv2_small,64,200,64,.5,84.1\n",
         "scores in two units, 0.835 in line 2 and 84.1 in line 4: write all as shares of 1 or all in per cent, or add "
         "--scores percent if 0.835 is meant as 0.835 %"),
        (HEADER.replace("score", "top-1 (%)") + "swinv2_small,64,100,64,.5,.8\n",
         "column top-1 (%) says per cent, and no score is above 0.8 (line 2): add --scores percent if"),
        (HEADER + "swinv2_small,64,100,64,.5,83.5%\n", "score is '83.5%': give a number from 0, with a point"),
        (HEADER + "swinv2_small,1,281,167,100,64,.5,.5\n", "line 2: 8 cells under 6 columns: write"),
        (HEADER + "swinv2_small,64,100,64,.5\n", "line 2: 5 cells under 6 columns: write numbers without commas in"),
        (HEADER + "swinv2_small,1281k,100,64,.5,.5\n", "unique_images is '1281k': give a whole number from 1, with a"),
        (HEADER + "swinv2_small,1.281,100,64,.5,.5\n", "unique_images is '1.281': give a whole number from 1"),
        (HEADER + "swinv2_small,64,100,64,nan,.5\n", "val_loss is 'nan': give a number from 0"),
        ("params," + HEADER + "87,vit_base,64,100,64,.5,.5\n", "params is 87: give the number itself (87 million are"),
        ("params," + HEADER + "87000,swinv2_base,64,100,64,.5,.5\n",
         "params is 87000: give the number itself (swinv2_base has 86,893,816)"),
        ("flops," + HEADER + "4.3,swinv2_base,64,100,64,.5,.5\n", "flops is 4.3, less than parameters times"),
        (HEADER + "vit_tiny,64,100,64,.5,.5\n", "line 2: model 'vit_tiny' has no params"),
        (HEADER + "swinv2_small,64,100,64,.5,.5\n" * 2, "line 3: the same run as line 2"),
    ],
)  # fmt: skip
def test_one_line_says_what_is_wrong(tmp_path, text, said) -> None:
    with pytest.raises(UserError) as error:
        imported.import_csv(write(tmp_path, text), tmp_path / "runs")
    assert said in str(error.value) and "theirs.csv" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_the_command(tmp_path, capsys) -> None:
    path = write(tmp_path, HEADER + "swinv2_small,64,1000,64,.5,.5\nswinv2_small,64,2000,64,.6,.6\n")
    assert main(["records", "import", str(path), "--runs-dir", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "2 runs taken from" in said and "C7" in said
    assert main(["records", "import", str(tmp_path / "none.csv")]) == 2
    assert "none.csv: cannot be read (No such file or directory)" in capsys.readouterr().err
