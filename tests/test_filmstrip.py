"""Films: no number of a run changes, a kill costs nothing, and what is shown is what the weights say."""

from dataclasses import replace

import lab_content
import numpy as np
import pytest
import torch
from tiny import numbers, same, stopped

from simmim_lite import cli
from simmim_lite.data.batches import normalise
from simmim_lite.data.sources import open_data
from simmim_lite.errors import UserError
from simmim_lite.lab import widgets
from simmim_lite.model.masking import upsample
from simmim_lite.training.callbacks import film_path, film_steps, read_film
from simmim_lite.training.callbacks import filmed as filmed_of
from simmim_lite.training.pretrain import build, pretrain
from simmim_lite.training.run import Run, load_final

SHORT = {"steps": 16, "batch_size": 16, "warmup_steps": 4, "eval_every": 8, "val_images": 32, "val_masks": 1}
SMALL = Run(images=48, **SHORT, probe_labels=0)


@pytest.fixture(scope="module")
def filmed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("filmed")
    return folder, pretrain(SMALL, runs_dir=folder, device="cpu", film=6)


def test_a_film_changes_no_number_and_is_served_as_it_is(filmed, tmp_path, capsys) -> None:
    folder, record = filmed
    assert numbers(pretrain(SMALL, runs_dir=tmp_path, device="cpu")) == numbers(record)
    assert same(load_final(tmp_path, SMALL), load_final(folder, SMALL)) and not (tmp_path / "films").exists()
    before = film_path(folder, SMALL).read_bytes()
    words = [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()]
    words += ["--images=48", "--probe-labels=0", "--device=cpu", "--film=12", f"--runs-dir={folder}"]
    assert cli.main(["pretrain", *words]) == 0 and f"film: {film_path(folder, SMALL)}" in capsys.readouterr().out
    assert film_path(folder, SMALL).read_bytes() == before


def test_a_film_shows_what_the_weights_say(filmed) -> None:
    folder, record = filmed
    film = read_film(film_path(folder, SMALL))
    assert tuple(frame["step"] for frame in film.facts["frames"]) == film_steps(SMALL, 6) == (0, 3, 8, 14, 16)
    assert film.frames.shape == (5, 6, 3, 32, 32) and film.pictures.shape == (6, 3, 32, 32)
    assert film.facts["frames"][-1]["val_loss"] == record["final"]["val_loss"]
    assert film.facts["curve"] == record["curve"]
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
    grid = lab_content.grid(folder, [SMALL])
    assert (grid.frames[0] == film.frames[-1]).all() and grid.facts["frames"][0]["images"] == 48


@pytest.mark.parametrize("stop", [0, 15])
def test_interrupted_and_damaged_films_are_made_again(stop: int, filmed, tmp_path) -> None:
    path, made = film_path(tmp_path, SMALL), read_film(film_path(filmed[0], SMALL))
    with stopped(stop):
        pretrain(SMALL, runs_dir=tmp_path, device="cpu", film=6)
    assert read_film(path).facts["frames"], "what was filmed is there"
    if stop:
        path.write_bytes(path.read_bytes()[:5000])
        with pytest.raises(UserError, match="no readable film .*delete the file"):
            read_film(path)
    pretrain(SMALL, runs_dir=tmp_path, device="cpu", film=6)
    film = read_film(path)
    assert (film.frames[-1] == made.frames[-1]).all() and (film.pictures == made.pictures).all()
    if not stop:
        assert (film.frames == made.frames).all() and film.facts | {"where": 0} == made.facts | {"where": 0}


def test_what_cannot_be_filmed(tmp_path) -> None:
    for run, frames, line in ((replace(SMALL, target="normalized"), 6, "no colours"), (SMALL, 2, "film is 2")):
        with pytest.raises(UserError, match=line):
            pretrain(run, runs_dir=tmp_path, device="cpu", film=frames)


def test_shipped_films_say_where_they_come_from() -> None:
    run, grid = (widgets.shipped_film(name).facts for name in widgets.SHIPPED_FILMS)
    for facts in (run, grid):
        assert len(facts["where"]["commit"]) == 40 and not facts["where"]["dirty"]
    assert Run.from_dict(run["run"]) == lab_content.FILMED and run["key"] == lab_content.FILMED.key
    assert [frame["key"] for frame in grid["frames"]] == [r.key for r in lab_content.GRID]
    pictures, _, facts = filmed_of(lab_content.FILMED, open_data("scenes", 32))
    assert (pictures == widgets.shipped_film().pictures).all() and facts.items() <= run.items()
    strip = widgets.FilmStrip()
    assert [film["kind"] for film in strip.films] == ["run", "grid"]
    assert "http://" not in strip.static_html().replace("http://www.w3.org", "")
