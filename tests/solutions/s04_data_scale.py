"""Exercises of 04_data_scale: a solution of each, and a plausible wrong answer."""

solution_1 = 500_000 * 2048 / 128_117
wrong_1 = 500_000 / 128_117  # as if a batch held one image


def solution_2(rows):
    best = {}
    for row in rows:
        if row["steps"] == 500_000 and row["dataset"] != "imagenet22k":
            n = row["images"]
            if n not in best or row["val_loss"] < best[n]["val_loss"]:
                best[n] = row
    return {n: row["model"] for n, row in best.items()}


def wrong_2(rows):
    """The shorter runs are among them."""
    rows = [r for r in rows if r["dataset"] != "imagenet22k"]
    return {
        n: min((r["val_loss"], r["model"]) for r in rows if r["images"] == n)[1] for n in {r["images"] for r in rows}
    }


def solution_3(rows):
    whole = {(r["model"], r["steps"]): r["val_loss"] for r in rows if r["dataset"] == "imagenet1k-100"}
    return sum(r["val_loss"] - whole[r["model"], r["steps"]] > 0.004 for r in rows)


def wrong_3(rows):
    """Without the margin."""
    whole = {(r["model"], r["steps"]): r["val_loss"] for r in rows if r["dataset"] == "imagenet1k-100"}
    return sum(r["val_loss"] > whole[r["model"], r["steps"]] for r in rows)
