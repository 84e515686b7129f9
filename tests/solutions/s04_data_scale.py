"""Exercises of 04_data_scale: a solution of each, and a plausible wrong answer."""


def solution_1():
    return 500_000 * 2048 / 128_117


def wrong_1():
    """As if a batch held one image."""
    return 500_000 / 128_117


def solution_2():
    def best_size(rows):
        best = {}
        for row in rows:
            if row["steps"] == 500_000 and row["dataset"] != "imagenet22k":
                n = row["images"]
                if n not in best or row["val_loss"] < best[n]["val_loss"]:
                    best[n] = row
        return {n: row["model"] for n, row in best.items()}

    return best_size


def wrong_2():
    """The shorter runs are among them."""

    def best_size(rows):
        rows = [r for r in rows if r["dataset"] != "imagenet22k"]
        return {
            n: min((r["val_loss"], r["model"]) for r in rows if r["images"] == n)[1]
            for n in {r["images"] for r in rows}
        }

    return best_size


def solution_3():
    def count_overfit(rows):
        whole = {(r["model"], r["steps"]): r["val_loss"] for r in rows if r["dataset"] == "imagenet1k-100"}
        return sum(r["val_loss"] - whole[r["model"], r["steps"]] > 0.004 for r in rows)

    return count_overfit


def wrong_3():
    """Without the margin."""

    def count_overfit(rows):
        whole = {(r["model"], r["steps"]): r["val_loss"] for r in rows if r["dataset"] == "imagenet1k-100"}
        return sum(r["val_loss"] > whole[r["model"], r["steps"]] for r in rows)

    return count_overfit
