import errno
import json
import os
import time
from dataclasses import asdict

import pytest

from lightning_uncertainty import FixedWeighting
from lightning_uncertainty.trials import Comparison, Measure, Trial
from lightning_uncertainty.trials._folder import TrialFolder
from lightning_uncertainty.trials._plan import Plan
from lightning_uncertainty.trials._work import Work
from tests.trials.test_comparing import Counting, run, trial

LOSS = Measure("depth", "loss", "val/depth/loss", False)


def plan(name="equal", seed=0, task=None):
    return Plan(name, task, seed, FixedWeighting, "FixedWeighting()")


def finished(plan, rows=1):
    found = [{"epoch": float(i), "val/depth/loss": 1.0 / (1 + i), "val/kind/loss": 2.0} for i in range(rows)]
    return Trial(plan.name, plan.task, plan.seed, plan.weighting, found, {}, 0.01, None)


def no_room(*args):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["a" * 230, "x" * 5000, "σ/ä\0 ..", "", "setup", ".", "CON"])
def test_a_name_may_be_anything(name, tmp_path):
    folder, mine = TrialFolder(tmp_path, {}), plan(name)
    with folder.claim(mine) as ours:
        assert ours
    folder.keep(mine, finished(mine))
    assert folder.find(mine) == finished(mine)
    assert folder.find(plan(f"{name}.")) is None
    assert max(len(file) for file in os.listdir(tmp_path)) < 40


def test_names_and_tasks_are_not_mixed_up(tmp_path):
    folder = TrialFolder(tmp_path, {})
    plans = [
        plan("a, b"),
        plan("a b"),
        plan("a", task="b"),
        plan("a, b", task="c"),
        plan("a", task="b, c"),
        plan("a", seed=1),
    ]
    for one in plans:
        folder.keep(one, finished(one))
    assert [folder.find(one) for one in plans] == [finished(one) for one in plans]


def test_long_names_are_compared(tmp_path):
    found = run(weightings={"w" * 230: FixedWeighting, "v" * 230: FixedWeighting}, seeds=[0], baseline=None)
    assert {len(result.name) for result in found.results} == {230}


def test_a_folder_of_before_is_read(tmp_path):
    old = run(seeds=[0], baseline=None)
    for file, kept in zip(sorted((tmp_path / "trials").glob("[0-9a-f]*.json")), range(9), strict=False):
        held = json.loads(file.read_text())
        for key in ("state", "error", "traceback", "attempt"):
            del held[key]
        (tmp_path / f"trials/{held['name']}, seed {held['seed']}.json").write_text(json.dumps(held, indent=1))
        file.unlink()
        assert kept < 2
    make = Counting()
    assert run(make, seeds=[0], baseline=None).trials == old.trials
    assert make.fits == 0


def test_what_a_later_version_adds_is_read_past(tmp_path):
    folder, mine = TrialFolder(tmp_path, {}), plan()
    folder.keep(mine, finished(mine))
    (file,) = tmp_path.glob("[0-9a-f]*.json")
    file.write_text(json.dumps({**asdict(finished(mine)), "colour": "blue"}))
    assert folder.find(mine) == finished(mine)


@pytest.mark.parametrize("text", ["", '{"name": "eq', "[]", "{}", "7"])
def test_a_file_that_cannot_be_read_is_told_and_fitted_anew(text, tmp_path):
    whole = run(seeds=[0], baseline=None)
    next((tmp_path / "trials").glob("[0-9a-f]*.json")).write_text(text)
    make = Counting()
    with pytest.warns(UserWarning, match=r"a trial should be a JSON object: found .* in .*; it is fitted anew"):
        again = run(make, seeds=[0], baseline=None)
    assert make.fits == 1
    assert [one.rows for one in again.trials] == [one.rows for one in whole.trials]


def test_a_full_disk_leaves_what_was_finished_and_nothing_else(tmp_path, monkeypatch):
    sync, count = os.fsync, iter(range(9))

    def fills(file):
        return no_room() if next(count) == 3 else sync(file)  # the setup and two trials have room

    monkeypatch.setattr(os, "fsync", fills)
    with pytest.raises(OSError, match="No space left on device"):
        run(baseline=None)
    assert not list((tmp_path / "trials").glob("*.partial"))
    assert len(list((tmp_path / "trials").glob("[0-9a-f]*.json"))) == 2
    monkeypatch.setattr(os, "fsync", sync)
    make = Counting()
    assert len(run(make, baseline=None).trials) == 4
    assert make.fits == 2


def test_a_full_disk_while_a_trial_is_replaced_leaves_what_it_was(tmp_path, monkeypatch):
    folder, mine = TrialFolder(tmp_path, {}), plan()
    folder.keep(mine, finished(mine))
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(OSError, match="No space left"):
        folder.keep(mine, finished(mine, rows=3))
    assert folder.find(mine) == finished(mine)


def test_what_is_held_is_not_given_to_another(tmp_path):
    folder, mine = TrialFolder(tmp_path, {}), plan()
    with folder.claim(mine), TrialFolder(tmp_path, {}).claim(mine) as ours, folder.claim(plan("other")) as other:
        assert not ours
        assert other
    with folder.claim(mine) as ours:
        assert ours


def test_ten_thousand_trials_are_read_in_five_seconds(tmp_path):
    folder, plans = TrialFolder(tmp_path, {}), [plan(f"w{i % 10}", i // 10) for i in range(10_000)]
    for one in plans:  # as `keep` writes them, and faster
        folder._file(one).write_text(json.dumps(asdict(finished(one, rows=10)), indent=1))
    start = time.process_time()
    work = Work(TrialFolder(tmp_path, {}), plans)
    Comparison(tuple(work.trials.values()), (LOSS,), (), "w0").table()
    assert time.process_time() - start < 5
    assert not work.missing
    assert len(work.trials) == 10_000


def test_a_trial_that_failed_says_so():
    assert Trial(**{**asdict(trial("w", 0, [1.0], [0.5])), "state": "failed"}).failed
