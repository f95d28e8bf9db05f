import pytest
import torch

from lightning_uncertainty.likelihoods import AsGeneric, Constant, as_likelihood


def test_its_loss_is_the_mean_of_its_terms_whatever_their_sign():
    terms = torch.randn(4, 3, 2, requires_grad=True)
    total, count = Constant().loss(terms)
    torch.testing.assert_close(total / count, terms.mean())
    assert Constant().loss(torch.tensor(-2.0)) == (-2.0, 1.0)
    total, count = Constant().loss(terms, mask=torch.tensor([True, False, False, True]))
    torch.testing.assert_close(total / count, terms[[0, 3]].mean())


def test_it_has_no_scale_no_labels_and_no_uncertainty():
    constant = as_likelihood("constant")
    assert constant == Constant()
    assert (constant.factor, constant.exponent, constant.penalty, constant.log_ratio) == (1, 0, 0, 0)
    assert constant.optimum(3.0) == 0.0
    assert [len(part) for part in constant.observed(torch.ones(3))] == [0, 0]
    predicted = constant.predicted(torch.ones(2, 3), torch.tensor(0.0), torch.tensor(1.0))
    assert predicted.mean.equal(torch.ones(3))
    assert predicted.total.isnan().all()


def test_it_is_not_weighed_as_generic():
    with pytest.raises(ValueError, match="AsGeneric should be normalised and of a task: found Constant"):
        AsGeneric(Constant())
