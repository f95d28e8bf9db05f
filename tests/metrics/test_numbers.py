import pytest
import torch
from torchmetrics import BootStrapper, MeanSquaredError

from lightning_uncertainty.metrics.numbers import made_up, names_of, numbers_of


def test_numbers_have_the_names_of_their_places():
    value = {"a.b": [torch.tensor(1), 2.0], "c": torch.tensor([[3.0, 4.0]]), "d": (True,)}
    found = {name: number.item() for name, number in numbers_of(value).items()}
    assert found == {"a_b/0": 1, "a_b/1": 2, "c/0/0": 3, "c/0/1": 4, "d/0": 1}
    assert numbers_of(None) == {}
    assert numbers_of(torch.tensor(5.0)) == {"": torch.tensor(5.0)}


def test_what_is_no_number_is_refused():
    with pytest.raises(TypeError, match="a result should be made of numbers: found a str"):
        numbers_of({"a": "text"})


def test_names_are_found_without_a_trace():
    metric = BootStrapper(MeanSquaredError(), num_bootstraps=3)
    metric.update(torch.zeros(4), torch.ones(4))
    before, batch = metric.compute(), (torch.rand(4), torch.rand(4))
    state = torch.get_rng_state()
    assert names_of(metric, *batch) == ("mean", "std")
    assert torch.get_rng_state().equal(state)
    metric._computed = None
    torch.testing.assert_close(metric.compute(), before)


@pytest.mark.parametrize("like", [torch.zeros(()), torch.zeros((), dtype=torch.int64)])
def test_what_is_made_up_is_always_the_same_and_of_the_type_of_labels(like):
    for shapes in ((torch.Size([3]), torch.Size([])), (torch.Size([3]), torch.Size([3]))):
        (prediction, label), again = made_up(*shapes, like), made_up(*shapes, like)
        assert prediction.equal(again[0])
        assert label.equal(again[1])
        assert label.dtype == like.dtype
        assert prediction.shape == (8, *shapes[0])
        assert label.shape == (8, *shapes[1])
    prediction, label = made_up(torch.Size([3, 4]), torch.Size([4]), torch.zeros((), dtype=torch.int64))
    torch.testing.assert_close(prediction.sum(1), torch.ones(8, 4))
    assert set(label.unique().tolist()) == {0, 1, 2}
