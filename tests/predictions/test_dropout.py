import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_uncertainty.predictions import mc_dropout

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
