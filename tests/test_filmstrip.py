"""Films: no number of a run changes, a kill costs nothing, and what is shown is what the weights say."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import stopped

from simmim_lite import cli
from simmim_lite.data.batches import normalise
from simmim_lite.data.sources import open_data
from simmim_lite.errors import UserError
from simmim_lite.lab import filmstrip
from simmim_lite.model.masking import upsample
from simmim_lite.training.film import Shot, film_path, film_steps, read_film
from simmim_lite.training.pretrain import build, pretrain
from simmim_lite.training.run import Run, load_final, read_record, record_path

SMALL = Run(
    images=48, steps=24, batch_size=16, warmup_steps=4, eval_every=8, val_images=64, val_masks=1, probe_labels=0
)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return folder, pretrain(SMALL, runs_dir=folder, device="cpu")


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filmed")
    return folder, pretrain(SMALL, runs_dir=folder, device="cpu", film=6)


def test_a_film_changes_no_number_and_is_served_as_it_is(plain, filmed, capsys) -> None:
    same = ("key", "status", "run", "curve", "final", "transfer")
    assert {k: plain[1][k] for k in same} == {k: filmed[1][k] for k in same}
    ours, theirs = (load_final(folder, SMALL) for folder, _ in (plain, filmed))
    assert all((ours[name] == theirs[name]).all() for name in ours)
    assert not (plain[0] / "films").exists()
    folder, record = filmed
    before = film_path(folder, SMALL).read_bytes()
    assert pretrain(SMALL, runs_dir=folder, device="cpu", film=12) == record == read_record(record_path(folder, SMALL))
    words = ["--images", "48", "--steps", "24", "--batch-size", "16", "--warmup-steps", "4", "--eval-every", "8"]
    words += ["--val-images", "64", "--val-masks", "1", "--probe-labels", "0", "--device", "cpu"]
    assert cli.main(["pretrain", *words, "--film", "6", "--runs-dir", str(folder)]) in (0, None)
    assert f"film: {film_path(folder, SMALL)}" in capsys.readouterr().out
    assert film_path(folder, SMALL).read_bytes() == before


def test_a_film_shows_what_the_weights_say(filmed) -> None:
    folder, record = filmed
    film = filmstrip.frames(folder, SMALL)
    steps = [f["step"] for f in film.facts["frames"]]
    assert tuple(steps) == film_steps(SMALL, 6) == (0, 1, 4, 12, 21, 24)
    assert film.frames.shape == (6, 6, 3, 32, 32) and film.pictures.shape == (6, 3, 32, 32)
    assert film.facts["frames"][-1]["val_loss"] == record["final"]["val_loss"]
    assert film.facts["curve"] == record["curve"] and film.facts["where"]["versions"]["torch"]

    data, model, cells = open_data("scenes", 32), build(SMALL).eval(), np.array(film.facts["cells"], bool)
    images, std, mean = data.val.images[:6], np.reshape(data.std, (3, 1, 1)), np.reshape(data.mean, (3, 1, 1))
    for weights, row in ((model.state_dict(), 0), (load_final(folder, SMALL), -1)):
        model.load_state_dict(weights)
        with torch.inference_mode():
            x = normalise(images, data.mean, data.std)
            guess = model.reconstruct(x, torch.from_numpy(upsample(cells, 2))).numpy()
        colours = (np.clip(guess * std + mean, 0, 1) * 255 + 0.5).astype(np.uint8)
        assert (film.frames[row] == np.where(upsample(cells, 8)[:, None], colours, images)).all()
    assert cells.sum((1, 2)).tolist() == [10] * 6


def same_film(a, b) -> None:
    assert (a.frames == b.frames).all() and (a.pictures == b.pictures).all()
    assert {k: v for k, v in a.facts.items() if k != "where"} == {k: v for k, v in b.facts.items() if k != "where"}


@pytest.mark.parametrize("stop", [0, 3, 22])
def test_interrupted_film_equals_undisturbed(stop: int, filmed, tmp_path) -> None:
    """Also beside what a killed `write_atomic` leaves: it is swept away, and the film before it is whole."""
    path = film_path(tmp_path, SMALL)
    with stopped(stop):
        pretrain(SMALL, runs_dir=tmp_path, device="cpu", film=6)
    assert read_film(path).facts["frames"], "what was filmed is there"
    (path.parent / f".{path.name}.123.456").write_bytes(path.read_bytes()[:999])
    pretrain(SMALL, runs_dir=tmp_path, device="cpu", film=6)
    same_film(filmstrip.frames(tmp_path, SMALL), filmstrip.frames(filmed[0], SMALL))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_a_damaged_film_is_named_and_filmed_again(filmed, tmp_path) -> None:
    path = film_path(tmp_path, SMALL)
    path.parent.mkdir(parents=True)
    path.write_bytes(film_path(filmed[0], SMALL).read_bytes()[:5000])
    with pytest.raises(UserError, match=r"not a readable film.*delete the file"):
        read_film(path)
    pretrain(SMALL, runs_dir=tmp_path, device="cpu", film=6)
    same_film(read_film(path), filmstrip.frames(filmed[0], SMALL))


def test_without_films_what_is_kept_is_shown_and_runs_make_a_grid(plain, filmed, tmp_path) -> None:
    folder, record = plain
    film = filmstrip.frames(folder, SMALL)
    assert [f["step"] for f in film.facts["frames"]] == [SMALL.drop_step, SMALL.steps]
    assert (film.frames[-1] == filmstrip.frames(filmed[0], SMALL).frames[-1]).all()
    with pytest.raises(UserError, match="neither film, checkpoint nor weights"):
        filmstrip.frames(tmp_path, SMALL)
    small = replace(SMALL, images=16)
    pretrain(small, runs_dir=folder, device="cpu")
    grid = filmstrip.grid(folder, [small, SMALL])
    assert [f["images"] for f in grid.facts["frames"]] == [16, 48]
    assert grid.facts["frames"][1]["val_loss"] == record["final"]["val_loss"]
    assert (grid.frames[1] == film.frames[-1]).all()
    for other, said in (
        (replace(SMALL, seed=5), "not finished in"),
        (replace(SMALL, mask_ratio=0.5), "its mask_ratio"),
    ):
        with pytest.raises(UserError, match=said):
            filmstrip.grid(folder, [small, other])


def test_what_cannot_be_filmed(tmp_path) -> None:
    for run, frames, said in ((replace(SMALL, target="normalized"), 6, "no colours"), (SMALL, 2, "film is 2")):
        with pytest.raises(UserError, match=said):
            pretrain(run, runs_dir=tmp_path, device="cpu", film=frames)
    record = pretrain(replace(SMALL, lr=9.0, clip_grad=1e9), runs_dir=tmp_path, device="cpu", film=6)
    assert record["status"] == "failed", "and its film ends where its numbers do"


def test_shipped_films_say_where_they_come_from() -> None:
    run, grid = (filmstrip.shipped(name).facts for name in filmstrip.SHIPPED)
    for name, facts in zip(filmstrip.SHIPPED, (run, grid), strict=True):
        assert (filmstrip.FOLDER / f"{name}.png").stat().st_size < 300_000
        where = facts["where"]
        assert len(where["commit"]) == 40 and not where["dirty"] and where["versions"]["torch"]
    assert Run.from_dict(run["run"]) == filmstrip.SHIPPED_RUN and run["key"] == filmstrip.SHIPPED_RUN.key
    assert [f["key"] for f in grid["frames"]] == [r.key for r in filmstrip.SHIPPED_GRID]
    assert run["frames"][-1]["val_loss"] < 0.6 * run["frames"][0]["val_loss"]
    data = open_data("scenes", 32)
    shot = Shot.of(filmstrip.SHIPPED_RUN, data, data.mean, data.std)
    assert (shot.pictures == filmstrip.shipped().pictures).all()
    strip = filmstrip.FilmStrip()
    assert [film["kind"] for film in strip.films] == ["run", "grid"]
    assert all(film["sheet"].startswith("data:image/png;base64,") for film in strip.films)
    assert "http://" not in strip.static_html().replace("http://www.w3.org", "")
    with pytest.raises(UserError, match="did you mean 'scenes'"):
        filmstrip.shipped("scene")
