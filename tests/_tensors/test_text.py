import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_uncertainty._tensors import packed, text_of, text_tensor, unpacked

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=90)


@given(TEXTS)
def test_a_text_survives(text):
    numbers = text_tensor(text)
    assert numbers.dtype is torch.int64
    assert len(numbers) % 128 == 0
    for altered in (
        numbers,
        numbers * 0.98,  # a mean that lost some
        numbers * 1.02,
        numbers - 7 * (numbers > 0),  # cut off, time and again
        numbers.half(),
        numbers.bfloat16(),
        sum([numbers] * 9) / 9,
    ):
        assert text_of(altered) == text


def test_what_is_no_text_is_replaced():
    assert text_of(torch.full((4,), torch.nan)) == ""
    assert text_of(text_tensor("é")[2:]) == "\N{REPLACEMENT CHARACTER}"


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text(max_size=5), inner, max_size=4)
    ),
)


@given(PLAIN)
def test_a_value_is_packed_and_comes_back(value):
    found = unpacked(*packed(value))
    assert found == value
    assert repr(found) == repr(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64, torch.bool, torch.bfloat16])
def test_tensors_are_packed(dtype):
    value = torch.randn(2, 3).mul(5).to(dtype)
    found = unpacked(*packed({"a": [value, torch.tensor(2.5)]}))["a"]
    torch.testing.assert_close(found, [value, torch.tensor(2.5)], rtol=0, atol=0)


def test_means_of_values_of_one_form_are_values():
    first, last = (packed({"steps": steps, "mean": torch.tensor([mean])}) for steps, mean in ((3, 1.0), (6, 2.0)))
    assert unpacked(*((a + b) / 2 for a, b in zip(first, last, strict=True))) == {
        "steps": 4,
        "mean": torch.tensor([1.5]),
    }


def test_what_cannot_be_packed_and_what_is_not():
    with pytest.raises(TypeError, match="of builtins and tensors: found object"):
        packed([object()])
    with pytest.raises(ValueError, match="should be its JSON: found 'nonsense'"):
        unpacked(torch.zeros(3), text_tensor("nonsense"))
    with pytest.raises(ValueError, match="should be its JSON"):
        unpacked(torch.zeros(0), text_tensor('["int"]'))
