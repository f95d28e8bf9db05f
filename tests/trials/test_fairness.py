import warnings

import pytest

from lightning_uncertainty.trials import compare
from lightning_uncertainty.weightings import SmoothTchebycheff, SoftOptimalUncertaintyWeighting
from tests._nets import Plain, tuples


def run(weighting, epochs=1, scale=1.0, folder="x", **options):
    class Scaled(Plain):
        def losses(self, batch):
            found = super().losses(batch)
            return {"depth": found["depth"] * scale, "kind": found["kind"]}

    trainer = {"max_epochs": epochs, "accelerator": "cpu"}
    shared = {"seeds": [0], "baseline": None, "progress_bar": False, "trainer": trainer, **options}
    return compare(Scaled, (tuples(16), tuples(16)), {"mine": weighting}, folder, **shared)


@pytest.mark.parametrize(("epochs", "nadir", "told"), [(1, 0, True), (4, 4, True), (5, 4, True), (2, 0, False)])
def test_a_fit_shorter_than_the_nadir_is_told(epochs, nadir, told):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run(SmoothTchebycheff(nadir_epoch=nadir), epochs=epochs)
    said = [str(one.message) for one in found if "SmoothTchebycheff" in str(one.message)]
    assert len(said) == told
    if told:
        assert f"found max_epochs={epochs} and nadir_epoch={nadir}; give a lower nadir_epoch" in said[0]


def test_the_formula_of_the_paper_has_no_nadir_to_wait_for():
    run(SmoothTchebycheff(nadir_epoch=None))


@pytest.mark.parametrize(("scale", "told"), [(1e-4, True), (1.0, False)])
def test_uw_so_that_gives_all_to_one_task_is_told_once(scale, told):
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        run(SoftOptimalUncertaintyWeighting(temperature=5.0), epochs=2, scale=scale)
    said = [str(one.message) for one in found if "UW-SO" in str(one.message)]
    assert len(said) == told
    if told:
        assert "found 100.0% for 'depth' in the first batch" in said[0]


def test_a_task_alone_has_all_the_weight_and_that_is_right():
    run(SoftOptimalUncertaintyWeighting(temperature=50.0), alone=["mine"])
