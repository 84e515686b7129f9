"""Films: no number of a run changes, a kill costs nothing, and what is shown is what the weights say."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import numbers, same, stopped

from simmim_lite.data.sources import open_data
from simmim_lite.errors import UserError
from simmim_lite.lab import filmstrip, pictures
from simmim_lite.training.checkpoint import load_final
from simmim_lite.training.film import Shot, film_path, film_steps, read_film
from simmim_lite.training.pretrain import build, pretrain
from simmim_lite.training.run import Run, read_record, record_path

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


def test_a_film_changes_no_number_and_shows_what_the_weights_say(plain, filmed) -> None:
    folder, record = filmed
    assert numbers(plain[1]) == numbers(record) and not (plain[0] / "films").exists()
    assert same(load_final(plain[0], SMALL), load_final(folder, SMALL))
    film = filmstrip.frames(folder, SMALL)
    assert tuple(f["step"] for f in film.facts["frames"]) == film_steps(SMALL, 6) == (0, 1, 4, 12, 21, 24)
    assert film.frames.shape == (6, 6, 3, 32, 32) and film.pictures.shape == (6, 3, 32, 32)
    assert film.facts["frames"][-1]["val_loss"] == record["final"]["val_loss"]
    assert film.facts["curve"] == record["curve"] and film.facts["where"]["versions"]["torch"]
    data, model, cells = open_data("scenes", 32), build(SMALL), np.array(film.facts["cells"], bool)
    for weights, row in ((model.state_dict(), 0), (load_final(folder, SMALL), -1)):
        model.load_state_dict(weights)
        expected = pictures.predict(model, data.val.images[:6], cells, data.mean, data.std)
        assert (film.frames[row] == expected).all()
    assert cells.sum((1, 2)).tolist() == [10] * 6
    visible = ~cells.repeat(8, 1).repeat(8, 2)[:, None] & np.ones((1, 3, 1, 1), bool)
    assert all((frame[visible] == film.pictures[visible]).all() for frame in film.frames)


def same_film(a, b) -> None:
    assert (a.frames == b.frames).all() and (a.pictures == b.pictures).all()
    without = lambda facts: {k: v for k, v in facts.items() if k != "where"}  # noqa: E731
    assert without(a.facts) == without(b.facts)


@pytest.mark.parametrize("stop", [0, 12, 22])
def test_interrupted_film_equals_undisturbed(stop: int, filmed, tmp_path) -> None:
    """What a killed write leaves beside the film is swept away; the film before it is whole."""
    with stopped(stop):
        pretrain(SMALL, runs_dir=tmp_path, device="cpu", film=6)
    path = film_path(tmp_path, SMALL)
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


def test_without_a_film_what_is_kept_is_shown_and_a_grid_of_runs(plain, filmed, tmp_path) -> None:
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
    with pytest.raises(UserError, match="not finished in"):
        filmstrip.grid(folder, [small, replace(SMALL, seed=5)])
    with pytest.raises(UserError, match="its mask_ratio is not that of"):
        filmstrip.grid(folder, [small, replace(SMALL, mask_ratio=0.5)])


def test_what_cannot_be_filmed(tmp_path) -> None:
    with pytest.raises(UserError, match="no colours"):
        pretrain(replace(SMALL, target="normalized"), runs_dir=tmp_path, device="cpu", film=6)
    with pytest.raises(UserError, match="film is 2"):
        pretrain(SMALL, runs_dir=tmp_path, device="cpu", film=2)
    record = pretrain(replace(SMALL, lr=9.0, clip_grad=1e9), runs_dir=tmp_path, device="cpu", film=6)
    assert record["status"] == "failed", "and its film ends where its numbers do"


def test_shipped_films_say_where_they_come_from() -> None:
    for name in filmstrip.SHIPPED:
        assert (filmstrip.FOLDER / f"{name}.png").stat().st_size < 300_000
        where = filmstrip.shipped(name).facts["where"]
        assert len(where["commit"]) == 40 and not where["dirty"] and where["versions"]["torch"]
    run, grid = (filmstrip.shipped(name).facts for name in filmstrip.SHIPPED)
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


def test_a_filmed_run_is_served_as_it_is(filmed, capsys) -> None:
    from simmim_lite import cli

    folder, record = filmed
    before = film_path(folder, SMALL).read_bytes()
    assert pretrain(SMALL, runs_dir=folder, device="cpu", film=12) == record == read_record(record_path(folder, SMALL))
    assert film_path(folder, SMALL).read_bytes() == before
    words = ["--images", "48", "--steps", "24", "--batch-size", "16", "--warmup-steps", "4", "--eval-every", "8"]
    words += ["--val-images", "64", "--val-masks", "1", "--probe-labels", "0", "--device", "cpu"]
    assert cli.main(["pretrain", *words, "--film", "6", "--runs-dir", str(filmed[0])]) in (0, None)
    assert f"film: {film_path(filmed[0], SMALL)}" in capsys.readouterr().out
