import csv
import gc
import weakref

import pytest
import torch

from lightning_uncertainty import FixedWeighting, UncertaintyWeighting
from lightning_uncertainty.trials._run import _in_short
from tests._nets import Owning
from tests.trials.test_comparing import SINGLE_TASK, WEIGHTINGS, Counting, run

OUT_OF_MEMORY = torch.OutOfMemoryError if hasattr(torch, "OutOfMemoryError") else torch.cuda.OutOfMemoryError


class Failing(Owning):
    """Its steps fail under uncertainty weighting, in the first seed of two."""

    seeds = (0, 1)

    def training_step(self, batch, batch_idx):
        if isinstance(self.task_weighting, UncertaintyWeighting) and torch.initial_seed() in self.seeds:
            raise OUT_OF_MEMORY("CUDA out of memory. Tried to allocate 2.00 GiB")
        return super().training_step(batch, batch_idx)


class FailingLess(Failing):
    seeds = (0,)


FailingLess.__name__ = "Failing"  # of the same setup, and mended


class Mended(Failing):
    seeds = ()


Mended.__name__ = "Failing"


def test_a_fit_that_fails_is_a_row_and_the_others_go_on(tmp_path):
    make = Counting(Failing)
    with pytest.warns(UserWarning, match=r"trial 'uncertainty, seed \d' failed: out of memory; the others go") as told:
        found = run(make)
    assert len([one for one in told if "failed" in str(one.message)]) == 2
    assert make.fits == 8
    by_name = {result.name: result for result in found.results}
    broken = by_name["uncertainty"]
    assert (broken.failed, broken.gain, broken.rank, broken.values) == ("failed: out of memory", None, None, {})
    assert by_name["equal"].rank == 1.0
    assert by_name["equal"].failed == ""
    assert found.best.name == "equal"
    assert "failed: out of memory" in found.table()
    found.to_csv(tmp_path / "x.csv")
    with (tmp_path / "x.csv").open() as file:
        rows = {row["weighting"]: row for row in csv.DictReader(file)}
    assert (rows["uncertainty"]["failed"], rows["equal"]["failed"]) == ("failed: out of memory", "")
    found.plot()
    (first, _) = [trial for trial in found.trials if trial.failed]
    assert first.state == "failed"
    assert "in training_step" in first.traceback


def test_a_failed_trial_is_fitted_again_only_when_asked_and_once():
    with pytest.warns(UserWarning, match="failed: out of memory"):
        first = run(Failing)
    make = Counting(Mended)
    assert run(make).table() == first.table()
    assert make.fits == 0
    make = Counting(FailingLess)
    with pytest.warns(UserWarning, match="'uncertainty, seed 0' failed: out of memory"):
        found = run(make, retry_failed=True)
    assert make.fits == 2
    assert [trial.attempt for trial in found.trials if trial.name == "uncertainty"] == [2, 2]
    assert {result.name: result.failed for result in found.results}["uncertainty"] == "1 of 2 failed: out of memory"
    assert not any(trial.failed for trial in run(Mended, retry_failed=True).trials)


def test_what_another_has_tried_again_since_is_not_tried_again():
    from lightning_uncertainty.trials._folder import TrialFolder
    from lightning_uncertainty.trials._work import Work
    from tests.trials.test_folder import finished, plan

    folder, mine = TrialFolder("x", {}), plan()

    def failed(attempt):
        return type(finished(mine))(**{**vars(finished(mine)), "state": "failed", "error": "x", "attempt": attempt})

    folder.keep(mine, failed(1))
    work = Work(folder, [mine], retry_failed=True)
    assert work.missing == [mine]
    folder.keep(mine, failed(2))  # by another worker
    assert list(work.do(lambda plan, attempt: pytest.fail("fitted"))) == []
    assert work.trials[mine].attempt == 2


def test_a_single_task_that_fails_takes_its_seed_from_the_baseline():
    def make(weighting):
        net = Owning(weighting)
        weight = getattr(net.task_weighting, "weight", torch.ones(2))
        if weight.tolist() == [1, 0] and torch.initial_seed() == 1:
            raise RuntimeError("no\nroom")
        return net

    with pytest.warns(UserWarning, match="'single task depth, seed 1' failed: RuntimeError: no; "):
        found = run(make, seeds=[0, 1, 2])
    by_name = {result.name: result for result in found.results}
    assert sorted(len(mean.values) for mean in by_name[SINGLE_TASK].values.values()) == [2, 3]
    assert {len(by_name[name].gain.values) for name in WEIGHTINGS} == {2}
    assert "(n=2)" in found.table()
    assert by_name[SINGLE_TASK].failed == "1 of 6 failed: RuntimeError: no"
    assert by_name["equal"].gain is not None


def test_where_every_trial_fails_the_last_traceback_is_told():
    def broken(weighting):
        net = Owning(weighting)
        net.trunk = None
        return net

    with (
        pytest.warns(UserWarning, match="TypeError: 'NoneType' object is not callable"),
        pytest.raises(
            ValueError, match=r"came to its end: found 4 that failed, the last with TypeError(.|\n)*retry_failed"
        ),
    ):
        run(broken, baseline=None)


def test_a_model_that_refuses_a_weighting_is_a_row():
    def picky(weighting):
        if isinstance(weighting, UncertaintyWeighting):
            raise ValueError("not with me")
        return Owning(weighting)

    for order in (WEIGHTINGS, dict(reversed(WEIGHTINGS.items()))):
        with pytest.warns(UserWarning, match="ValueError: not with me"):
            found = run(picky, weightings=order, baseline=None, seeds=[0], folder=next(iter(order)))
        assert found.best.name == "equal"


def test_nothing_of_a_failed_fit_stays_in_memory():
    kept = []

    def make(weighting):
        net = Failing(weighting)
        kept.append(weakref.ref(net))
        return net

    with pytest.warns(UserWarning, match="out of memory"):
        run(make, baseline=None, seeds=[0], weightings={"uncertainty": UncertaintyWeighting, "equal": FixedWeighting})
    gc.collect()
    assert [reference() for reference in kept] == [None] * 3


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (MemoryError(), "out of memory"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: 9"),
            "out of memory",
        ),
        (OUT_OF_MEMORY("CUDA out of memory."), "out of memory"),
        (ValueError(), "ValueError"),
        (ValueError("\n a\nb"), "ValueError: a"),
    ],
)
def test_what_was_raised_is_told_in_a_few_words(error, text):
    assert _in_short(error) == text


def test_the_answer_says_where_the_baseline_or_all_others_have_failed():
    def make(failing):
        def made(weighting):
            if type(weighting).__name__ in failing and torch.initial_seed() < 9:
                raise RuntimeError("broken")
            return Owning(weighting)

        return made

    class Probe(FixedWeighting):
        pass

    weightings = {"base": Probe, "uncertainty": UncertaintyWeighting}
    with pytest.warns(UserWarning, match="failed"):
        found = run(make({"Probe"}), weightings=weightings, baseline="base", folder="a")
    assert "No seed of base, the baseline, came to its end: no gains." in found.answer()
    with pytest.warns(UserWarning, match="failed"):
        found = run(make({"UncertaintyWeighting"}), weightings=weightings, baseline="base", folder="b")
    assert found.answer() == "Every fit of the weightings besides base, the baseline, failed: see the table."
