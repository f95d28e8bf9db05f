import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_uncertainty.predictions import Sampling, mc_dropout, sample

DROPOUTS = [nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout]


class OwnDropout(nn.Dropout):
    """A subclass of a layer of torch."""


class DropPath(nn.Module):
    """A layer that torch does not know."""

    def forward(self, x):
        return x * (torch.rand(len(x), 1) > 0.5) if self.training else x


class Attention(nn.Module):
    """Self-attention that returns its output only."""

    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


class Recurrent(nn.Module):
    """Two recurrent layers with dropout between."""

    def __init__(self, kind):
        super().__init__()
        self.layers = kind(8, 8, num_layers=2, dropout=0.5, batch_first=True)

    def forward(self, x):
        return self.layers(x)[0]


def varies(net, inputs, also=()):
    with torch.no_grad(), mc_dropout(net, also):
        return not torch.equal(net(inputs), net(inputs))


@pytest.mark.parametrize("kind", [*DROPOUTS, OwnDropout])
def test_every_dropout_layer_drops(kind):
    shape = {nn.Dropout1d: (1, 50, 2), nn.Dropout3d: (1, 50, 2, 2, 2)}.get(kind, (1, 50, 2, 2))
    assert varies(nn.Sequential(nn.Identity(), kind(0.5)).eval(), torch.ones(shape))


@pytest.mark.parametrize("net", [Attention(), *(Recurrent(kind) for kind in (nn.LSTM, nn.GRU, nn.RNN))])
def test_layers_with_dropout_inside_drop(net):
    assert varies(net.eval(), torch.randn(2, 5, 8))


@pytest.mark.parametrize("mask", [None, torch.tensor([[False] * 5, [False] * 3 + [True] * 2])])
def test_the_fused_path_of_transformers_does_not_skip_dropout(mask):
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.5, batch_first=True)
    net = nn.TransformerEncoder(layer, 2).eval()
    inputs = torch.randn(2, 5, 8)
    with torch.no_grad(), mc_dropout(net):
        outputs = [net(inputs, src_key_padding_mask=mask) for _ in range(2)]
    assert not torch.equal(*outputs)
    assert not any(part.training for part in net.modules())


def test_classes_of_others_drop_when_named():
    net = nn.Sequential(nn.Linear(4, 4), DropPath()).eval()
    assert varies(net, torch.randn(50, 4), also=(DropPath,))
    with pytest.raises(ValueError, match="name classes that drop by themselves in also"), mc_dropout(net):
        pass


@pytest.mark.parametrize(
    ("also", "found", "written"),
    [
        (DropPath, "DropPath", "DropPath"),
        ("DropPath", "'DropPath'", "DropPath"),
        (["DropPath"], "'DropPath'", "DropPath"),
        ((nn.ReLU, DropPath()), "an instance of DropPath", "DropPath"),
        (DropPath(), "an instance of DropPath", "DropPath"),
    ],
)
def test_what_is_no_tuple_of_classes_is_told_how_to_be_one(also, found, written):
    message = rf"tuple of classes of modules: found {found}; write also=\({written},\)"
    with pytest.raises(TypeError, match=message), mc_dropout(nn.Sequential(nn.Linear(4, 4), DropPath()), also):
        pass
    with pytest.raises(TypeError, match=message):
        Sampling(also=also)


def test_the_children_of_a_named_class_evaluate():
    class Block(nn.Sequential):
        def forward(self, x):
            return functional.dropout(super().forward(x), 0.5, self.training)

    net = Block(nn.BatchNorm1d(4)).eval()
    with mc_dropout(net, also=(Block,)):
        assert net.training
        assert not net[0].training


def test_batch_norm_neither_learns_nor_uses_the_batch():
    norm = nn.BatchNorm1d(4)
    norm(torch.randn(9, 4))
    net = nn.Sequential(norm, nn.Dropout(0.5)).train()
    before = {name: value.clone() for name, value in norm.state_dict().items()}
    inputs = 5 + torch.randn(9, 4)
    with mc_dropout(net):
        net(inputs)
        alone = norm(inputs[:1])
    assert all(torch.equal(value, before[name]) for name, value in norm.state_dict().items())
    torch.testing.assert_close(alone, norm.eval()(inputs)[:1])


@pytest.mark.parametrize("fails", [False, True])
def test_every_module_gets_its_own_mode_back(fails):
    net = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.0)))
    net[0].eval()  # frozen by its owner, within a network that trains
    net[2][1].eval()
    modes = [part.training for part in net.modules()]
    assert len(set(modes)) == 2
    try:
        with mc_dropout(net):
            assert [part.training for part in net.modules()] == [False, False, True, False, False, False]
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [part.training for part in net.modules()] == modes


def one_layer():
    with pytest.warns(UserWarning, match="num_layers"):
        return nn.LSTM(4, 4, num_layers=1, dropout=0.5)


@pytest.mark.parametrize(
    "net",
    [
        lambda: nn.Linear(4, 4),
        lambda: nn.Sequential(nn.Dropout(0.0)),
        lambda: nn.TransformerEncoderLayer(8, 2, dropout=0.0),
        lambda: nn.LSTM(4, 4, num_layers=2),
        one_layer,
    ],
)
def test_a_network_that_would_not_drop_is_refused(net):
    net = net().train()
    with pytest.raises(ValueError, match=r"should have dropout with p > 0: found none.*DeepEnsemble"), mc_dropout(net):
        pass
    assert net.training


class Block(nn.Module):
    """Drops by a function, as long as it trains."""

    def __init__(self, function=functional.dropout, given="self"):
        super().__init__()
        self.layer, self.function, self.given = nn.Dropout(0.1), function, given

    def forward(self, x):
        return self.function(self.layer(x), 0.5, self.training if self.given == "self" else self.given)


FUNCTIONS = [
    torch.dropout,
    functional.dropout,
    functional.dropout2d,
    functional.alpha_dropout,
    functional.feature_alpha_dropout,
]


@pytest.mark.parametrize("function", FUNCTIONS)
def test_functional_dropout_that_stays_off_is_told_once_with_the_class_to_name(function):
    net, x = nn.Sequential(Block(function)), torch.ones(2, 3, 4, 4)
    with pytest.warns(UserWarning, match=r"functional dropout in Block stayed off.*also=\(Block,\)"), mc_dropout(net):
        net(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mc_dropout(net):  # it was told
            net(x)
        with mc_dropout(net, also=(Block,)):
            net(x)
        with mc_dropout(other := nn.Sequential(Block(function)), also=(Block,)):
            other(x)


def test_several_classes_are_told_together_and_what_no_module_calls_too():
    class Other(Block):
        pass

    net = nn.Sequential(Block(), Other())
    with pytest.warns(UserWarning, match=r"in Block, Other stayed off.*also=\(Block, Other,\)"), mc_dropout(net):
        net(torch.ones(2, 4))
    with pytest.warns(UserWarning, match=r"in <a function> stayed off.*call nn.Dropout there"), mc_dropout(net[0]):
        functional.dropout(torch.ones(2, 4), 0.5, False)


@pytest.mark.parametrize("given", [True, False])
def test_functional_dropout_that_is_on_or_off_on_purpose_is_not_told(given):
    net = nn.Sequential(Block(given=given), nn.MultiheadAttention(4, 2, dropout=0.3))
    kinds = (Block,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mc_dropout(net, also=kinds):
            net[0](torch.ones(2, 4))
            net[1](*[torch.ones(3, 2, 4)] * 3)
        with mc_dropout(nn.Sequential(layer := nn.Dropout(0.2))):
            functional.dropout(layer(torch.ones(2)), 0.0, False)


def test_a_layer_that_fused_attention_passes_over_is_told():
    class Fused(nn.Module):
        def __init__(self):
            super().__init__()
            self.attn_drop, self.drop = nn.Dropout(0.3), nn.Dropout(0.1)

        def forward(self, x):
            p = self.attn_drop.p if self.training else 0.0
            return self.drop(functional.scaled_dot_product_attention(x, x, x, dropout_p=p))

    net, x = nn.Sequential(Fused()), torch.ones(1, 2, 3, 4)
    told = r"0.attn_drop did not run, though Fused did.*also=\(Fused,\)"
    with pytest.warns(UserWarning, match=told), mc_dropout(net):
        net(x)
    assert not any(part._forward_pre_hooks for part in net.modules())
    unused = nn.ModuleDict({"used": nn.Sequential(nn.Dropout(0.3)), "not": nn.Sequential(nn.Dropout(0.3))})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with mc_dropout(unused):
            unused["used"](x)


def test_samples_tell_too():
    with pytest.warns(UserWarning, match="functional dropout in Block stayed off"):
        sample(lambda x: {"depth": net(x)}, torch.ones(2, 4), 3, module=(net := nn.Sequential(Block())))
