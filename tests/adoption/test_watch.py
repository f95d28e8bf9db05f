import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_uncertainty.adoption._naming import as_part
from lightning_uncertainty.adoption._watch import Plan, Watch


class Host(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.loss = nn.Linear(3, 1), nn.MSELoss()
        self.rule = F.smooth_l1_loss

    def both(self, made):
        return {"near": made.abs().mean(), "inner": {"far": made.square().mean()}}

    def made(self):
        return self.net(torch.ones(2, 3))


def watched(text, run, **options):
    host = Host()
    with Watch(host, Plan({"task": as_part(text)}), **options) as watch:
        returned = run(host)
    return watch, returned


def of(watch):
    return [sight.value.item() for sight in watch.sights.get("task", ())]


def losses(host):
    made, label = host.made(), torch.zeros(2, 1)
    with torch.no_grad():
        host.loss(made, label)
    return [host.loss(made + at, label) for at in range(3)]


@pytest.mark.parametrize("text", ["call:loss", "function:torch.nn.functional.mse_loss"])
def test_all_calls_of_the_graph_are_seen_or_the_one_that_is_meant(text):
    watch, returned = watched(text, losses)
    assert of(watch) == [loss.item() for loss in returned]
    for nth in range(3):
        watch, returned = watched(f"{text}@{nth + 1}", losses)
        assert of(watch) == [returned[nth].item()]
    watch, _ = watched(f"{text}@0", losses)  # a call without graph counts, and is told
    assert watch.useless == {"task": "a Tensor without graph"}
    watch, _ = watched(f"{text}@4", losses)
    assert not watch.reached("task")


def test_a_method_an_entry_and_a_function_that_is_held_are_seen():
    watch, returned = watched("call:both@['inner']['far']", lambda host: host.both(host.made()))
    assert of(watch) == [returned["inner"]["far"].item()]
    watch, returned = watched("call:rule", lambda host: host.rule(host.made(), torch.zeros(2, 1)))
    assert of(watch) == [returned.item()]
    with pytest.raises(
        RuntimeError, match=r"the entry of .* in the host: found no index 'no' in a dict that has 'near', 'inner'"
    ):
        watched("call:both@['no']", lambda host: host.both(host.made()))
    with pytest.raises(RuntimeError, match="should be something that is called: found a Parameter"):
        watched("call:net.weight", lambda host: None)


def test_what_was_watched_is_as_it_was():
    host = Host()
    hooks, names = dict(host.loss._forward_hooks), set(vars(host))
    for text in ("call:loss", "call:both", "call:rule", "function:torch.nn.functional.mse_loss"):
        with pytest.raises(ZeroDivisionError), Watch(host, Plan({"task": as_part(text)})):
            raise ZeroDivisionError
    assert (dict(host.loss._forward_hooks), set(vars(host))) == (hooks, names)
    assert host.rule is F.smooth_l1_loss


def test_a_part_is_one_number():
    with pytest.raises(
        RuntimeError, match=r"'call:net', the part of task 'task', should be one number: found shape \[2, 1\]"
    ):
        watched("call:net", Host.made)


def test_in_place_sums_do_not_change_what_was_seen():
    host = Host()
    with Watch(host, Plan({"task": as_part("log:near")})) as watch:
        near = host.made().square().mean()
        before = near.item()
        watch.see_logged("near", near)
        watch.see_logged("near", near)  # once for the step, once for the epoch
        watch.see_logged("other", near)
        total = near
        total += 1
    (sight,) = watch.sights["task"]
    assert sight.value.item() == before != total.item()
    assert torch.autograd.grad(total, [sight.edge])[0] == 1


WAYS = {
    "item": lambda loss: loss.item(),
    "float": float,
    "detach": lambda loss: loss.detach(),
    "detach and move": lambda loss: loss.detach().cpu().clone(),
    "data": lambda loss: loss.clone().detach(),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("way", WAYS)
def test_a_number_is_followed_to_its_loss_if_asked(way):
    host = Host()
    for follow in (True, False):
        with Watch(host, Plan({"task": as_part("log:near")}), follow=follow) as watch:
            loss = host.made().square().mean()
            watch.see_logged("near", WAYS[way](loss))
        if follow:
            assert of(watch) == [loss.item()]
        else:
            assert watch.sights == {}
            assert watch.useless["task"] in ("a float", "a Tensor without graph")


def test_in_evaluation_numbers_are_seen():
    host = Host()
    parts = {"a": as_part("log:a"), "b": as_part("log:b"), "c": as_part("call:loss")}
    with torch.no_grad(), Watch(host, Plan(parts), evaluating=True) as watch:
        watch.see_logged("a", 2.0)
        watch.see_logged("b", torch.tensor([3.0]))
        loss = host.loss(host.made(), torch.zeros(2, 1))
    assert {name: sights[0].value.item() for name, sights in watch.sights.items()} == {"a": 2, "b": 3, "c": loss.item()}


def test_while_it_rests_nothing_is_seen_or_counted():
    def run(host):
        host.loss(host.made(), torch.zeros(2, 1))
        with watch.resting():
            host.loss(host.made(), torch.zeros(2, 1))
        return host.loss(host.made() + 1, torch.zeros(2, 1))

    host = Host()
    with Watch(
        host, Plan({"a": as_part("call:loss@1"), "b": as_part("function:torch.nn.functional.mse_loss@1")})
    ) as watch:
        loss = run(host)
    assert [sight.value.item() for name in "ab" for sight in watch.sights[name]] == [loss.item()] * 2


class Labelled(torch.Tensor):
    def clone(self, *args, **kwargs):
        raise AttributeError("no labels")


def test_a_tensor_of_a_class_of_its_own_is_a_part():
    host = Host()
    with Watch(host, Plan({"task": as_part("log:near")})) as watch:
        loss = host.made().square().mean().as_subclass(Labelled)
        watch.see_logged("near", loss)
    assert type(watch.sights["task"][0].value) is torch.Tensor
    assert torch.autograd.grad(loss * 3, [watch.sights["task"][0].edge])[0] == 3
