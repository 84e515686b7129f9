"""Other people's runs: the numbers of docs/facts.md, 7, and the claims on the published ones; files of runs, what is
read of them, what is refused and how, and what is claimed on them."""

import csv
from pathlib import Path

import pytest

from simmim_lite.cli import main
from simmim_lite.errors import UserError
from simmim_lite.evidence import proxy, published
from simmim_lite.evidence.claims import claims_of
from simmim_lite.evidence.records import FOLDER
from simmim_lite.evidence.rules import TABLE
from simmim_lite.model.sizes import SIZES

FILE = Path(str(FOLDER.parent / "published_runs.csv"))


@pytest.fixture(scope="module")
def claims() -> dict:
    return {claim.id: claim for claim in claims_of(published.rows())}


def test_rows_are_the_file() -> None:
    rows = published.rows()
    with FILE.open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(rows) == len(lines) == 63
    for row, line in zip(rows, lines, strict=True):
        assert (row["model"], row["val_loss"]) == (line["model"], float(line["val_loss"]))
        assert row["finetune"] == pytest.approx(float(line["finetune_top1"]) / 100)
        assert row["images_seen"] == int(line["iterations"]) * 2048
        assert row["flops"] == pytest.approx(6e9 * SIZES[row["model"]].gmac(192, 12, head=True) * row["images_seen"])
    assert len({row["trunk"] for row in rows}) == 21
    assert sum(row["overfit"] for row in rows) == 23


def test_facts() -> None:
    facts, found = published.facts(), proxy.doublings(published.rows(), published.SCORE)
    value = {"all": -0.786, "whole": -0.966, "22k": -0.979, "non_overfit": -0.961, "overfit": -0.713, "tenth": 0.548}
    pearson = facts["pearson"].loc[list(value)]
    assert pearson["value"].to_dict() == pytest.approx(value, abs=0.0006)
    assert pearson["n"].tolist() == [63, 15, 12, 40, 23, 9]
    ends = pearson.loc[["non_overfit", "overfit"], ["low", "high"]].to_numpy().ravel()
    assert ends == pytest.approx([-0.98, -0.94, -0.88, -0.33], abs=0.015)
    assert facts["choices"]["share"].tolist() == pytest.approx([0.84, 0.905, 0.79, 0.86], abs=0.005)
    pairs = proxy.accuracy(published.rows(), published.SCORE)
    assert pairs["share"].iloc[:3].tolist() == pytest.approx([0.874, 0.93, 0.76], abs=0.005)
    assert pairs.low["gap 0 to 0.001"] < 0.5 < pairs.high["gap 0 to 0.001"], "a coin flip"
    rose, gained = found.loss_change > 0, found.score_change > 0
    assert (len(found), rose.sum(), (rose & gained).sum(), (~rose & gained).sum()) == (42, 14, 7, 28)
    # the turning points are no sharper than a factor of 1.5
    assert 1.3e6 / 1.5 < facts["omega"]["loss"] < 1.3e6 * 1.5
    assert facts["omega"]["score"] == pytest.approx(3e6, rel=0.1)


@pytest.mark.parametrize(
    ("claim", "n", "effect", "low", "high"),
    [
        ("C1", 9, 0.0092, 0.0021, 0.0163),
        ("C2", 4, -0.0058, -0.0104, -0.0011),
        ("C3", 5, -0.0042, -0.0050, -0.0034),
        ("C4", 3, 0.0123, 0.0025, 0.0222),
        ("C5a", 21, -0.90, -1.0, -0.82),
        ("C7", 14, -0.0001, -0.0018, 0.0016),
    ],
)
def test_claims_by_cells(claims, claim, n, effect, low, high) -> None:
    """As docs/settings.md prints them; a sentence says that an interval over cells is no repetition."""
    found, digits = claims[claim], 2 if claim == "C5a" else 4
    assert found.verdict == "holds" and found.n == n
    assert [round(v, digits) for v in (found.effect, found.low, found.high)] == [effect, low, high]
    assert "not repetition; chosen after seeing these runs" in found.evidence


def test_what_the_published_runs_cannot_test(claims) -> None:
    assert list(claims) == [rule.id for rule in TABLE]
    assert claims["C5b"].verdict == claims["C8"].verdict == "not tested here"
    assert "training losses" in claims["C5b"].evidence and "supervised" in claims["C8"].evidence
    assert claims["C6"].verdict == "too small to say" and claims["C6"].n == 3
    assert claims["C7"].margin == pytest.approx(-0.0025, abs=5e-5)
    assert claims["C9"].verdict == "does not hold" and claims["C9"].high < 0.5
    # ImageNet-22K is no level above ImageNet-1K: its images are others
    assert "14,197,122" not in "".join(claim.evidence for claim in claims.values())
    assert "few images cost it more, but it is not shown to be worse" in claims["C1"].evidence


# --- files of runs ---

HEADER = "model,unique_images,iterations,batch_size,val_loss,score\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "theirs.csv"
    path.write_text(text)
    return path


def test_the_published_file_can_be_imported(tmp_path) -> None:
    rows, _ = published.read_csv(FILE)
    for mine, theirs in zip(published.rows(), rows, strict=True):
        for name in ("model", "params", "images", "steps", "images_seen", "val_loss", "finetune"):
            assert theirs[name] == mine[name]
    claims = {claim.id: claim for claim in claims_of(rows)}
    assert claims["C3"].verdict == claims["C7"].verdict == "holds"
    assert len(published.import_csv(FILE, tmp_path)[0]) == 63
    assert published.imported(tmp_path) == {"published_runs": rows}


def test_other_headers_semicolons_and_what_is_not_used(tmp_path) -> None:
    text = "Parameters;Images;Steps;Batch size;Validation loss;Linear probe;notes\n5e6;1_000;100;64;0.5;0.25;x\n"
    (row,), notes = published.read_csv(write(tmp_path, text))
    assert (row["model"], row["params"], row["images"], row["linear"]) == ("5 M", 5_000_000, 1000, 0.25)
    assert row["finetune"] is None and notes[1] == "not used: notes"


def test_overfit_is_told_within_a_set_of_images(tmp_path) -> None:
    """Two sets, each with its whole; and names of levels of one set, which is said."""
    lines = "model,dataset,images,steps,batch_size,val_loss\n"
    two = [("photos", 1000, 0.40), ("photos", 100, 0.50), ("xrays", 500, 0.60), ("xrays", 50, 0.601)]
    text = lines + "".join(f"base,{name},{images},10,8,{loss}\n" for name, images, loss in two)
    rows, notes = published.read_csv(write(tmp_path, text))
    assert [row["overfit"] for row in rows] == [False, True, False, False] and "levels" not in notes[0]
    rows, notes = published.read_csv(write(tmp_path, lines + "base,all,1000,10,8,0.4\nbase,tenth,100,10,8,0.5\n"))
    assert [row["overfit"] for row in rows] == [False, True] and "the sets are taken as levels of one" in notes[0]


@pytest.mark.parametrize(
    ("header", "low", "high", "scores", "wanted"),
    [
        ("score", 12.5, 80, None, (0.125, 0.8)),
        ("score", 0.1, 0.8, "percent", (0.001, 0.008)),
        ("linear_probe_percent", 12.5, 80, None, (0.125, 0.8)),
        ("score", "", "", None, (None, None)),
    ],
)
def test_per_cent_and_fractions(tmp_path, header, low, high, scores, wanted) -> None:
    """As they are read, said and kept: what was imported once is read back the same, and never replaced by others."""
    lines = f"swinv2_small,64,100,64,.5,{low}\nswinv2_small,64,200,64,.4,{high}\n"
    path = write(tmp_path, HEADER.replace("score", header) + lines)
    rows, (note,) = published.read_csv(path, scores)
    score = "linear" if "linear" in header else "finetune"
    assert [row[score] for row in rows] == pytest.approx(list(wanted))
    unit = "per cent" if scores == "percent" or high == 80 else "shares of 1"
    assert (f"read as {unit}" if high else "no scores") in note
    for _ in range(2):
        assert (
            len(published.import_csv(path, tmp_path, scores)[0]) == 2 and published.imported(tmp_path)["theirs"] == rows
        )
    with pytest.raises(UserError, match=r"imported/theirs.csv holds other runs than"):
        published.import_csv(write(tmp_path, HEADER + lines.replace(".5", ".6")), tmp_path, "percent")


LINE = "swinv2_small,64,100,64,.5,.5\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("model,images,los\na,1,2\n", "no column iterations, batch_size, val_loss; its columns are model, images, los"),
        ("model,images,steps,batch,loss,Loss\n", "has 2 columns loss"),
        (HEADER, "has no runs"),
        (HEADER + LINE.replace(",.5,", ",nan,"), "val_loss is 'nan'"),
        (HEADER + LINE.replace(",64,100", ",0,100"), "line 2: unique_images is '0': give a whole number from 1"),
        (HEADER + LINE.replace(".5\n", ".835\n,,,,,\nswinv2_small,64,200,64,.5,84.1\n"), "from 0.835 to 84.1"),
        (HEADER.replace("score", "top-1 (%)") + LINE, "does not tell whether in per cent: add --scores percent"),
        (HEADER + LINE.replace(",64,100", ",1,281,167,100"), "line 2: 8 cells under 6 columns"),
        (HEADER + LINE.replace(",.5\n", "\n"), "line 2: 5 cells under 6 columns: write numbers without commas in"),
        ("params," + HEADER + "87,vit_base,64,100,64,.5,.5\n", "params is '87': give a whole number from 1000"),
        ("flops," + HEADER + "4.3,swinv2_base,64,100,64,.5,.5\n", "flops is 4.3, less than parameters times"),
        (HEADER + LINE.replace("swinv2_small", "vit_tiny"), "line 2: model 'vit_tiny' has no params"),
        (HEADER + LINE * 2, "line 3: the same run as line 2"),
    ],
)
def test_one_line_says_what_is_wrong(tmp_path, text, said) -> None:
    with pytest.raises(UserError) as error:
        published.import_csv(write(tmp_path, text), tmp_path / "runs")
    assert said in str(error.value) and "theirs.csv" in str(error.value) and "\n" not in str(error.value)
    assert not (tmp_path / "runs").exists()


def test_the_command_and_the_example(tmp_path, capsys) -> None:
    example = Path(__file__).resolve().parents[1] / "examples" / "runs.csv"
    assert set(example.read_text().splitlines()[0].split(",")) <= published.COLUMNS.keys()
    assert all(row["flops"] and row["finetune"] for row in published.read_csv(example)[0])
    assert main(["records", "import", str(example), "--runs-dir", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    assert "18 runs taken from" in said and "C7" in said and "read as per cent" in said
    assert main(["records", "import", str(tmp_path / "none.csv")]) == 2
    assert "none.csv: cannot be read (No such file or directory)" in capsys.readouterr().err
