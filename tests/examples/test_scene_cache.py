"""Streets that are kept: once, whole, and where one says."""

import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lightning_uncertainty.examples import _scene_cache
from lightning_uncertainty.examples._scene_cache import FIRST, Streets, cache_folder
from lightning_uncertainty.examples.streets import draw_street

SIZE = 16, 32


def test_what_is_kept_is_what_is_drawn(tmp_path):
    for split, first in FIRST.items():
        kept = Streets(tmp_path, split, 2, SIZE, progress_bar=False)
        for number, scene in enumerate(kept):
            street = draw_street(first + number, *SIZE)
            np.testing.assert_array_equal(scene["image"], street.image)
            np.testing.assert_array_equal(scene["semantics"], street.label)
            np.testing.assert_array_equal(scene["ids"], street.instance)
            there = street.depth > 0
            np.testing.assert_array_equal(np.isnan(scene["disparity"]), ~there)
            np.testing.assert_allclose(scene["disparity"][there], 62 * 32 / 256 / street.depth[there], rtol=1e-6)
        assert len(kept) == 2


def test_it_is_drawn_once(tmp_path, monkeypatch):
    Streets(tmp_path, "train", 2, SIZE, progress_bar=False)
    monkeypatch.setattr(_scene_cache, "draw_street", None)
    assert len(Streets(tmp_path, "train", 2, SIZE)) == 2
    with pytest.raises(TypeError):
        Streets(tmp_path, "train", 3, SIZE, progress_bar=False)


def test_what_was_interrupted_leaves_nothing_and_is_drawn_anew(tmp_path, monkeypatch):
    def interrupted(seed, *size):
        if seed == 1:
            raise KeyboardInterrupt
        return draw_street(seed, *size)

    with monkeypatch.context() as patch:
        patch.setattr(_scene_cache, "draw_street", interrupted)
        with pytest.raises(KeyboardInterrupt):
            Streets(tmp_path, "train", 2, SIZE, progress_bar=False)
    assert [path.suffix for path in next(tmp_path.iterdir()).iterdir()] in ([], [".lock"])
    assert len(Streets(tmp_path, "train", 2, SIZE, progress_bar=False)) == 2


@pytest.mark.parametrize("damage", ["cut", "emptied", "removed", "other"])
def test_what_is_damaged_is_drawn_anew(tmp_path, damage):
    drawn = list(Streets(tmp_path, "train", 2, SIZE, progress_bar=False))
    (path,) = tmp_path.glob("streets-*/*/depth.npy")
    if damage == "removed":
        path.unlink()
    elif damage == "other":
        np.save(path, np.zeros((2, *SIZE)))
    else:
        path.write_bytes(path.read_bytes()[: -8 if damage == "cut" else 0])
    for scene, before in zip(Streets(tmp_path, "train", 2, SIZE, progress_bar=False), drawn, strict=True):
        for name, part in scene.items():
            np.testing.assert_array_equal(part, before[name])


def test_what_a_killed_process_left_is_cleared_away(tmp_path):
    kept = Streets(tmp_path, "train", 2, SIZE, progress_bar=False).folder
    left = kept.with_name(f"unfinished-{kept.name}")
    kept.rename(left)
    assert len(Streets(tmp_path, "train", 2, SIZE, progress_bar=False)) == 2
    assert not left.exists()


def test_a_folder_that_takes_none_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(
        OSError, match=r"found that .*file does not take them \(.*Not a dir.*; name another folder with"
    ):
        Streets(tmp_path / "file", "train", 2, SIZE, progress_bar=False)


def test_two_processes_draw_it_once(tmp_path):
    program = (
        "import sys, pathlib\n"
        "from lightning_uncertainty.examples import _scene_cache as cache\n"
        "drawn, draw = [], cache.draw_street\n"
        "cache.draw_street = lambda seed, *size: drawn.append(seed) or draw(seed, *size)\n"
        f"found = cache.Streets(pathlib.Path({str(tmp_path)!r}), 'train', 40, (32, 64), progress_bar=False)\n"
        "print(len(drawn), len(found), int(found[39]['image'].sum()))\n"
    )
    both = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(tuple(map(int, process.communicate(timeout=120)[0].split())) for process in both)
    assert [found[:2] for found in said] == [(0, 40), (40, 40)]
    assert said[0][2] == said[1][2]


def test_workers_are_given_no_arrays(tmp_path):
    kept = Streets(tmp_path, "val", 2, SIZE, progress_bar=False)
    kept[0]
    sent = pickle.dumps(kept)
    assert len(sent) < 1000
    np.testing.assert_array_equal(pickle.loads(sent)[1]["image"], kept[1]["image"])


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("LIGHTNING_UNCERTAINTY_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("LIGHTNING_UNCERTAINTY_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for platform, folder in {"linux": "xdg", "darwin": "Library/Caches"}.items():
        monkeypatch.setattr(sys, "platform", platform)
        assert cache_folder() == tmp_path / folder / "lightning-uncertainty"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(sys, "platform", "linux")
    assert cache_folder() == Path(tmp_path) / ".cache/lightning-uncertainty"


def test_a_bar_shows_how_far_it_is(tmp_path, capsys):
    Streets(tmp_path, "test", 3, SIZE)
    assert "Drawing 3 streets, once: 100%" in capsys.readouterr().err
    Streets(tmp_path, "test", 3, SIZE)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("count", "size"), [(0, SIZE), (2, (0, 32))])
def test_no_street_is_told(tmp_path, count, size):
    with pytest.raises(ValueError, match=rf"one or more in each split, .*: found {count} for val, {size[0]} x 32"):
        Streets(tmp_path, "val", count, size)
    assert list(tmp_path.iterdir()) == []
