"""The toy: its data are the published ones, and σ is the residual wherever it is said to be."""

import pytest
import torch

from lightning_uncertainty.examples import toy
from lightning_uncertainty.examples.toy import LARGE, SMALL, gap, train

pytestmark = pytest.mark.filterwarnings("ignore:GPU available but not used")
SEEDS = range(5)
MOST = 0.02  # |σ / RMSE - 1|


def test_data_are_the_published_ones():
    x, y1, y2 = SMALL.tensors
    assert x.shape == y1.shape == y2.shape == (100, 1)
    assert x[:3, 0].tolist() == pytest.approx([1.764052345967664, 0.4001572083672233, 0.9787379841057392])
    assert y1[:3, 0].tolist() == pytest.approx([30.35961166249787, -4.677276194690018, -2.7473740166458587])
    assert y2[:3, 0].tolist() == pytest.approx([7.922975199960549, 3.961092447525744, 7.03587354820433])


@pytest.mark.parametrize(
    ("task", "slope", "intercept", "rmse"),
    [
        (1, 3.146984335463812, 8.751530850525139, 10.28188627728701),
        (2, 3.071895884483659, 2.9364677892642725, 0.9492408336586697),
    ],
)
def test_lines_through_the_data_are_the_published_ones(task, slope, intercept, rmse):
    x, y = SMALL.tensors[0].double(), SMALL.tensors[task].double()
    design = torch.cat([x, torch.ones_like(x)], dim=1)
    line = torch.linalg.lstsq(design, y).solution
    assert line.flatten().tolist() == pytest.approx([slope, intercept], rel=1e-6)
    assert (design @ line - y).square().mean().sqrt().item() == pytest.approx(rmse, rel=1e-6)


def test_large_labels_have_their_own_scales():
    x, y1, y2 = LARGE.tensors
    torch.testing.assert_close(x, SMALL.tensors[0])
    small1, small2 = SMALL.tensors[1:]
    torch.testing.assert_close(y1 - 200 * x - 800, small1 - 2 * x - 8, atol=1e-3, rtol=0)
    torch.testing.assert_close(y2 - 300 * x - 300, 100 * (small2 - 3 * x - 3), atol=1e-3, rtol=0)


def test_train_records_sigma_and_rmse_after_each_epoch_and_repeats():
    curve = train("learned", (SMALL, 2), (LARGE, 1))
    assert curve.shape == (3, 2, 2)
    assert curve.isfinite().all()
    assert torch.equal(curve, train("learned", (SMALL, 2), (LARGE, 1)))
    assert not torch.equal(curve, train("learned", (SMALL, 2), (LARGE, 1), seed=1))


def test_gap_is_the_mean_deviation_of_each_task():
    curve = torch.tensor([[[1.1, 2.0], [1.0, 2.0]], [[0.7, 1.0], [1.0, 2.0]]])
    torch.testing.assert_close(gap(curve), torch.tensor([0.2, 0.25]))


@pytest.mark.parametrize("mode", toy.MODES)
def test_main_prints_a_row_for_each_run(mode, monkeypatch, capsys):
    kinds, phases = toy.MODES[mode]
    monkeypatch.setattr(toy, "MODES", {mode: (kinds, tuple((data, 1) for data, _ in phases))})
    toy.main([mode])
    head, *rows = capsys.readouterr().out.splitlines()
    assert head.split() == ["run", "σ1", "RMSE1", "gap1", "σ2", "RMSE2", "gap2"]
    assert [row.split()[0] for row in rows] == list(kinds)
    assert {len(row.split()) for row in rows} == {7}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "first"), [("learned", 150), ("analytic", 25)])
def test_sigma_is_the_residual(kind, first):
    gaps = torch.stack([gap(train(kind, (SMALL, 300), seed=seed)[first:]) for seed in SEEDS])
    assert (gaps.median(dim=0).values <= MOST).all(), gaps


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["learned", "analytic"])
def test_sigma_is_the_residual_of_large_labels(kind):
    gaps = gap(train(kind, (LARGE, 500))[350:])
    assert (gaps <= MOST).all(), gaps


@pytest.mark.slow
def test_closed_form_follows_data_that_switch_to_large_labels():
    gaps = gap(train("analytic", (SMALL, 300), (LARGE, 200))[350:])
    assert (gaps <= MOST).all(), gaps


@pytest.mark.slow
def test_blog_mode_reproduces_the_published_transient():
    curve = train("blog", (SMALL, 2000))
    sigma, rmse = curve[-1]
    assert sigma[0].item() == pytest.approx(8.59, abs=0.02)
    assert sigma[1].item() == pytest.approx(0.904, abs=0.003)
    assert rmse[0] > 1.1 * sigma[0]  # so σ is no estimate of the residual yet ...
    assert sigma[0] > curve[-100, 0, 0]  # ... it is on its way
