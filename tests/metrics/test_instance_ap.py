from fractions import Fraction

import numpy as np
import pytest
import torch

from lightning_uncertainty.metrics import InstanceAP
from tests.instances._scenes import scenes
from tests.metrics._value import value

COCO = [0.5 + 0.05 * step for step in range(10)]


def draw(seed, batch=4):
    """Return predicted and true ids and classes, alike where the seed says so, and how sure each pixel is."""
    ids, classes = scenes(batch, seed=seed)
    rng = torch.Generator().manual_seed(seed)
    found, kinds = ids.clone(), classes.clone()
    for image in range(batch):
        down, right = torch.randint(-2, 3, (2,), generator=rng).tolist()
        found[image] = found[image].roll((down, right), (0, 1))
        kinds[image] = kinds[image].roll((down, right), (0, 1))
        lost = int(torch.randint(1, 7, (), generator=rng))
        found[image][found[image] == lost] = 0
        turned = int(torch.randint(1, 7, (), generator=rng))
        kinds[image][found[image] == turned] = int(torch.randint(1, 4, (), generator=rng))
        made_up = int(torch.randint(1, 30, (), generator=rng))
        found[image, made_up : made_up + 6, made_up : made_up + 7], kinds[image, made_up : made_up + 6] = 9, 2
    return found, kinds, ids, classes, torch.rand(ids.shape, generator=rng)


def by_hand(batches, threshold=0.5, min_area=0, ignore_index=None):
    """Return AP by class, instance by instance, with recall and precision as fractions."""
    rows, counts = [], {}
    for found, kinds, ids, classes, sure in batches:
        for image in range(len(ids)):
            void = classes[image] == ignore_index
            truths = {}
            for one in np.unique(ids[image][(ids[image] > 0) & ~void]):
                mask = (ids[image] == one) & ~void
                truths[one] = mask, np.bincount(classes[image][mask]).argmax(), mask.sum() < min_area
            for _, kind, small in truths.values():
                counts[kind] = counts.get(kind, 0) + (not small)
            predictions = []
            for one in np.unique(found[image][found[image] > 0]):
                mask = found[image] == one
                score = mask.sum() if sure is None else sure[image][mask].mean(dtype=np.float32)
                predictions.append((score, mask, np.bincount(kinds[image][mask]).argmax()))
            taken = set()
            for score, mask, kind in sorted(predictions, key=lambda each: -each[0]):
                best = None
                for one, (true, true_kind, small) in truths.items():
                    iou = Fraction(int((mask & true).sum()), int((mask | true).sum()))
                    if one not in taken and kind == true_kind and iou >= threshold:
                        best = max(best or (False, 0, 0), (not small, iou, one))
                if best is not None:
                    taken.add(best[2])
                    rows += [(kind, float(score), True)] if best[0] else []
                elif mask.sum() >= min_area and (mask & void).sum() < threshold * mask.sum():
                    rows.append((kind, float(score), False))
    values = {}
    for kind, count in counts.items():
        own = [row for row in rows if row[0] == kind]
        points = []
        for score in {row[1] for row in own}:
            above = [hit for _, other, hit in own if other >= score]
            points.append((Fraction(sum(above), count), Fraction(sum(above), len(above))) if count else (0, 0))
        levels = [
            max((precision for recall, precision in points if recall >= Fraction(r, 100)), default=0)
            for r in range(101)
        ]
        if count:
            values[str(kind)] = float(sum(levels) / 101)
    return values


def numbers(batches, scored):
    return [(*(x.numpy() for x in batch[:4]), batch[4].numpy() if scored else None) for batch in batches]


def updated(metric, batches, scored=True):
    for batch in batches:
        metric.update(*batch[: 5 if scored else 4])
    return metric


@pytest.mark.parametrize("scored", [True, False])
@pytest.mark.parametrize("options", [{}, {"min_area": 40}, {"ignore_index": 2}, {"min_area": 60, "ignore_index": 1}])
@pytest.mark.parametrize("threshold", [0.25, 0.5, 0.75])
def test_values_are_those_of_counting_by_hand(threshold, options, scored):
    batches = [draw(seed) for seed in range(4)]
    expected = by_hand(numbers(batches, scored), threshold, **options)
    metric = updated(InstanceAP(threshold, average="none", **options), batches, scored)
    assert {kind: ap.item() for kind, ap in metric.compute().items()} == pytest.approx(expected, abs=1e-6)
    assert 0 < sum(expected.values()) < len(expected)
    whole = updated(InstanceAP(threshold, **options), batches, scored)
    assert whole.compute().item() == pytest.approx(np.mean(list(expected.values())), abs=1e-6)


def test_values_are_those_of_pycocotools():
    """Of version 2.0.11 on the same masks, with the scores of the same pixels; of an earlier threshold, see above."""
    batches = [draw(seed) for seed in range(8, 16)]
    found = [updated(InstanceAP(thresholds), batches).compute().item() for thresholds in (COCO, 0.5, 0.75)]
    assert found == pytest.approx([0.08732, 0.34347, 0.02418], abs=1e-5)


@pytest.mark.parametrize("scored", [True, False])
def test_neither_batches_nor_their_order_nor_names_of_instances_matter(scored):
    batches = [draw(seed) for seed in range(6)]
    names = torch.tensor([0, 70_000, 3, 2**33, 8, 1, 12, 10, 11, 5])
    expected = updated(InstanceAP(COCO), batches, scored).compute()
    singles = [tuple(part[image] for part in batch) for batch in reversed(batches) for image in (3, 1, 0, 2)]
    renamed = [(names[found], kinds, -1 + ids + (ids > 0), *rest) for found, kinds, ids, *rest in singles]
    torch.testing.assert_close(updated(InstanceAP(COCO), renamed, scored).compute(), expected, rtol=0, atol=0)


def test_what_is_perfect_has_one_and_of_another_class_none():
    _, _, ids, classes, _ = draw(0)
    assert value(InstanceAP(COCO), ids, classes, ids, classes) == 1
    assert value(InstanceAP(), ids, classes + 3, ids, classes) == 0


@pytest.mark.parametrize("threshold", [0.05 * step for step in range(1, 21)])
def test_a_threshold_that_is_reached_is_enough(threshold):
    """However it is rounded; of 20 pixels."""
    ids = torch.ones(1, 1, 20, dtype=torch.int64)
    common = round(20 * threshold)
    found = (torch.arange(20) < common).long()[None, None]
    assert value(InstanceAP(common / 20), found, ids, ids, ids) == 1
    if common < 20:
        assert value(InstanceAP((common + 0.1) / 20), found, ids, ids, ids) == 0


def test_an_instance_is_hit_once_and_hits_once_the_surest_first():
    one, halves = torch.tensor([[1, 1, 1, 1]]), torch.tensor([[1, 1, 2, 2]])
    kinds, scores = torch.ones_like(one), torch.tensor([[0.2, 0.2, 0.8, 0.8]])
    assert value(InstanceAP(0.5), halves, kinds, one, kinds, scores) == 1  # the second miss comes after all was found
    assert value(InstanceAP(0.5), one, kinds, halves, kinds) == pytest.approx(51 / 101)
    two, found = torch.tensor([[1, 1, 1, 1, 2, 2, 2, 2]]), torch.tensor([[1, 1, 2, 2, 0, 0, 0, 0]])
    alike = torch.ones_like(two)  # and as sure: half of what is found, half of what is there
    assert value(InstanceAP(0.5), found, alike, two, alike) == pytest.approx(0.5 * 51 / 101)
    worse = torch.tensor([[1, 2, 2, 2]])
    assert value(InstanceAP(0.25), worse, kinds, one, kinds, scores) == 1
    assert value(InstanceAP(0.75), worse, kinds, one, kinds, 1 - scores) == pytest.approx(0.5)


def test_what_lies_where_nothing_is_labelled_or_is_small_is_not_counted():
    ids = torch.tensor([[1, 1, 1, 1, 0, 0, 0, 0, 0, 2]])
    classes = torch.tensor([[5, 5, 5, 5, 0, 0, 255, 255, 255, 5]])
    found = torch.tensor([[3, 3, 3, 3, 0, 0, 4, 4, 4, 6]])
    kinds = torch.full_like(ids, 5)
    scores = torch.tensor([[0.1, 0.1, 0.1, 0.1, 0, 0, 0.9, 0.9, 0.9, 0.8]])  # those in the way are the surer
    assert value(InstanceAP(ignore_index=255, min_area=2), found, kinds, ids, classes, scores) == 1
    assert value(InstanceAP(ignore_index=255), found, kinds, ids, classes, scores) == 1
    assert value(InstanceAP(min_area=2), found, kinds, ids, classes, scores) == pytest.approx(0.5)
    lost = torch.where(found == 6, 0, found)
    assert value(InstanceAP(ignore_index=255, min_area=2), lost, kinds, ids, classes, scores) == 1


def test_nothing_true_has_no_value_and_a_class_without_truth_is_left_out():
    _, _, ids, classes, _ = draw(0)
    nothing = torch.zeros_like(ids)
    assert value(InstanceAP(), ids, classes, nothing, classes) is None
    assert value(InstanceAP(average="none"), ids, classes, nothing, classes) == {}
    assert value(InstanceAP(), nothing, classes, ids, classes) == 0
    _, *kinds = classes.unique().tolist()
    assert set(value(InstanceAP(average="none"), ids, classes + 1, ids, classes)) == {str(kind) for kind in kinds}


def test_a_batch_without_images_adds_nothing():
    metric = updated(InstanceAP(), [draw(0)])
    expected = metric.compute()
    updated(metric, [tuple(part[:0] for part in draw(1))])
    torch.testing.assert_close(metric.compute(), expected)


@pytest.mark.parametrize("here", [0, 2, 4])
def test_ranks_add_up_to_the_whole(here):
    """One of them may have seen nothing."""
    batches = [draw(seed) for seed in range(4)]
    expected = updated(InstanceAP(), batches).compute()
    metric, other = updated(InstanceAP(), batches[:here]), updated(InstanceAP(), batches[here:])
    states = iter([torch.cat([*state, torch.zeros(0)]) for state in (other.found, other.truths)])
    metric.distributed_available_fn = lambda: True
    metric.dist_sync_fn = lambda tensor, group=None: [tensor, next(states)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metric, "_update_count", 1)  # no warning of a rank that has seen nothing
        torch.testing.assert_close(metric.compute(), expected, rtol=0, atol=0)
    assert metric(*draw(9)) is not None


@pytest.mark.parametrize("split", ["both", "one", "other"])
@pytest.mark.cells("tests.metrics._instance_ranks", "{split}")
def test_two_processes_have_the_value_of_one(split, found):
    expected = updated(InstanceAP(), [draw(seed) for seed in range(4)]).compute()
    for rank in (0, 1):
        torch.testing.assert_close(found(split, rank), expected, rtol=0, atol=0)


def test_a_step_has_its_own_value_and_a_reset_forgets():
    metric, first, second = InstanceAP(), draw(1), draw(2)
    expected = [value(InstanceAP(), *batch) for batch in (first, second)]
    torch.testing.assert_close([metric(*first), metric(*second)], expected, rtol=0, atol=0)
    torch.testing.assert_close(metric.compute(), updated(InstanceAP(), [first, second]).compute())
    metric.reset()
    torch.testing.assert_close(value(metric, *second), expected[1])


def test_a_model_in_half_precision_holds_it_as_it_is():
    batches = [draw(seed) for seed in range(3)]
    expected = updated(InstanceAP(), batches).compute()
    for dtype in (torch.bfloat16, torch.float64):
        model = torch.nn.ModuleDict({"metric": InstanceAP()}).to(dtype)
        torch.testing.assert_close(updated(model["metric"], batches).compute(), expected)


IDS = torch.ones(2, 3, dtype=torch.int64)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        ((IDS.float(), IDS, IDS, IDS), "ids should be a tensor of whole numbers: found torch.float32"),
        ((IDS, IDS, IDS, IDS.T), r"maps should have one shape: found ids \[2, 3\], .*, target_classes \[3, 2\]"),
        ((IDS, IDS, IDS, IDS, IDS.T.float()), r"scores should have the shape of ids \[2, 3\]: found \[3, 2\]"),
    ],
)
def test_maps_that_do_not_fit_are_refused_and_not_counted(maps, message):
    metric = InstanceAP()
    with pytest.raises(ValueError, match=message):
        metric.update(*maps)
    assert metric.found == metric.truths == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": 0.0}, "thresholds should be one or more above 0, up to 1: found 0.0"),
        ({"thresholds": []}, r"thresholds should be one or more above 0, up to 1: found \[\]"),
        ({"min_area": -1}, "min_area should be 0 or more pixels: found -1"),
        ({"average": "micro"}, "average should be 'macro' or 'none': found 'micro'"),
    ],
)
def test_options_without_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        InstanceAP(**options)
