"""Predictions of several processes are those of one."""

import pytest
import torch

from tests._launch import RANKS
from tests.trainer._predicting import STRATEGIES, predict


@pytest.mark.cells("tests.trainer._predicting", "{strategy}-{samples}")
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("samples", [1, 20])
def test_two_processes_predict_what_one_does(strategy, samples, found):
    """Under DDP a sampler deals the batches out; the masks of dropout are each process's own."""
    one = predict(samples, 1)
    both = [found(f"{strategy}-{samples}", rank) for rank in range(RANKS)]
    rows = sum(len(batch["depth"].mean) for rank in both for batch in rank)
    whole = strategy == "fsdp2"
    assert rows == (24 if whole else 12)
    for task in ("depth", "kind", "width"):
        expected = [torch.cat([getattr(batch[task], name) for batch in one]) for name in one[0][task]._fields]
        for rank, predictions in enumerate(both):
            values = [torch.cat([getattr(batch[task], name) for batch in predictions]) for name in one[0][task]._fields]
            share = slice(None) if whole else slice(rank, None, 2)
            mean, aleatoric, epistemic, total = [each[share] for each in expected]
            if samples == 1:
                for value, reference in zip(values, (mean, aleatoric, epistemic, total), strict=True):
                    torch.testing.assert_close(value, reference, rtol=1e-4, atol=1e-5)
            else:
                assert (values[2] > 0).all()
                torch.testing.assert_close(values[2].mean(), epistemic.mean(), rtol=0.5, atol=0.0)
                torch.testing.assert_close(values[1].mean(), aleatoric.mean(), rtol=0.1, atol=0.0)
