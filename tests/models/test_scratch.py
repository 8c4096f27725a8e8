"""Our own U-Net: shapes, skips and levels, learning, and sizes that do not fit."""

import pytest
import torch
from torch.nn import functional as F

from glacier_nb.models.scratch import _HALVINGS, ScratchUNet, _double_conv


def seeded(*args, **kwargs):
    "A network that is the same each time."
    torch.manual_seed(0)
    return ScratchUNet(*args, **kwargs)


@pytest.mark.parametrize(("channels", "classes"), [(1, 1), (5, 2), (7, 4)])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 96)])
def test_logits_have_the_size_of_the_image(channels, classes, height, width):
    logits = seeded(channels, classes, width=2)(torch.randn(2, channels, height, width))
    assert logits.shape == (2, classes, height, width)


@pytest.mark.parametrize("width", [1, 4, 16])
def test_number_of_weights(width):
    "Counted by hand from the diagram of the network."
    c, n, w = 7, 4, [width * 2**i for i in range(_HALVINGS + 1)]

    def block(i, o):
        return 9 * i * o + 9 * o * o + 4 * o

    down = block(c, w[0]) + sum(block(w[i], w[i + 1]) for i in range(_HALVINGS))
    up = sum(4 * w[i + 1] * w[i] + w[i] + block(2 * w[i], w[i]) for i in range(_HALVINGS))
    assert sum(p.numel() for p in ScratchUNet(c, n, width).parameters()) == down + up + n * w[0] + n


def test_same_function_as_written_with_plain_calls():
    "Parity: two levels of the network, computed by hand from its weights."
    net = seeded(3, 2, width=2).eval()
    x = torch.randn(1, 3, 32, 32)

    def block(seq, x):
        for conv, norm in ((seq[0], seq[1]), (seq[3], seq[4])):
            x = F.conv2d(x, conv.weight, padding=1)
            x = F.batch_norm(x, norm.running_mean, norm.running_var, norm.weight, norm.bias)
            x = F.relu(x)
        return x

    def level(i, x):
        inner = block(net.down[i], x)
        if i == _HALVINGS:
            return inner
        k = _HALVINGS - 1 - i
        deep = level(i + 1, F.max_pool2d(inner, 2))
        up = F.conv_transpose2d(deep, net.up[k].weight, net.up[k].bias, stride=2)
        return block(net.merge[k], torch.cat([inner, up], dim=1))

    expected = F.conv2d(level(0, x), net.head.weight, net.head.bias)
    torch.testing.assert_close(net(x), expected)


def test_each_skip_and_each_level_matters():
    net, x = seeded(5, 2, width=2).eval(), torch.randn(1, 5, 64, 64)
    with torch.no_grad():
        before = net(x)
        for part in (*net.down, *net.up, *net.merge):
            before_zero = {k: v.clone() for k, v in part.state_dict().items()}
            for p in part.parameters():
                p.zero_()
            assert not torch.equal(net(x), before), part
            part.load_state_dict(before_zero)
        assert torch.equal(net(x), before)


def test_initialisation_has_the_variance_of_he():
    "He et al. 2015: variance 2 / fan-in, in every convolution that feeds a ReLU."
    net = seeded(7, 4)
    for conv in (net.down[4][3], net.down[5][0], net.merge[0][0]):
        fan_in = conv.weight[0].numel()
        assert float(conv.weight.detach().var()) == pytest.approx(2 / fan_in, rel=0.02)
    assert float(net.head.weight.detach().std()) < 0.02
    assert all(conv.bias is None for conv in (net.down[0][0], net.merge[0][3]))


def test_overfits_one_crop():
    net, image = seeded(5, 3, width=4), torch.randn(2, 5, 32, 32)
    target = (image[:, 0] > 0).long() + (image[:, 1] > 1).long()
    optimizer, losses = torch.optim.Adam(net.parameters(), lr=2e-2), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = F.cross_entropy(net(image), target)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[0] == pytest.approx(torch.tensor(3.0).log().item(), abs=0.1)
    assert losses[-1] < 0.25 * losses[0]
    assert float((net(image).argmax(1) == target).float().mean()) > 0.9


def test_same_seed_same_weights():
    pairs = zip(seeded(5, 2, width=2).parameters(), seeded(5, 2, width=2).parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_channels_last_gives_the_same_map():
    net, x = seeded(5, 2, width=4).eval(), torch.randn(1, 5, 64, 64)
    torch.testing.assert_close(net(x.to(memory_format=torch.channels_last)), net(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(33, 32), (32, 48), (16, 16), (70, 33)])
def test_size_that_cannot_be_halved(size):
    with pytest.raises(ValueError, match=rf"{size[0]} x {size[1]} pixels: expected multiples of 32"):
        seeded(5, 2, width=1)(torch.zeros(1, 5, *size))


def test_block_has_no_negative_output():
    assert _double_conv(3, 4)(torch.randn(2, 3, 8, 8)).min() == 0
