from __future__ import annotations

import copy
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from exporter.graph.capture import Captured, capture
from exporter.graph.export import export
from exporter.graph.fold import FoldResult, fold
from tests.exporter.graphs import (
    SHAPE,
    Net,
    bottleneck,
    captured,
    cifar,
    conv_norm,
    evaluate,
    folded,
    images,
    net,
    ort_run,
    pre_activation,
    sqnr,
)

BATCH_NORM = torch.ops.aten.batch_norm.default


def norms_in(result: FoldResult | Captured) -> int:
    graph = (result.captured if isinstance(result, FoldResult) else result).module.graph
    return sum(node.target is BATCH_NORM for node in graph.nodes)


def fold_double(single: Captured) -> FoldResult:
    """The fold of the same graph with every tensor in float64."""
    return fold(Captured(copy.deepcopy(single.module).double(), single.shape))


def assert_folds(module: nn.Module, expected: int, x: Tensor | None = None) -> FoldResult:
    """All BatchNorms are gone, and both precisions agree with the module run in float64."""
    x = images() if x is None else x
    graph = captured(module)
    result = fold(graph)
    assert (len(result.rows), len(result.refused)) == (expected, 0)
    assert norms_in(result) == 0
    oracle = evaluate(copy.deepcopy(module).double(), x.double())
    assert sqnr(oracle, evaluate(fold_double(graph).captured.module, x.double())) >= 250
    assert sqnr(oracle, evaluate(result.captured.module, x)) >= 100
    return result


def assert_stays(module: nn.Module, reason: str, folds: int = 0, stays: int = 1, through_onnx: bool = True) -> None:
    """The BatchNorms stay for this reason, and nothing computes anything else than before."""
    x = images()
    result = folded(module)
    assert [row.reason for row in result.refused if reason in row.reason] != [], result.refused
    assert (len(result.rows), len(result.refused)) == (folds, stays)
    assert norms_in(result) == stays
    expected = evaluate(copy.deepcopy(module).double(), x.double())
    assert sqnr(expected, evaluate(result.captured.module, x)) >= 100
    if through_onnx:
        assert sqnr(expected, ort_run(export(result.captured, 17, "torch.export"), x)) >= 100


# --- what folds --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    spatial: int
    kernel: int
    groups: int
    stride: int
    dilation: int
    padding: int | str
    bias: bool
    affine: bool
    eps: float
    log_variance: float
    seed: int


@st.composite
def layers(draw: st.DrawFn) -> Layer:
    options: list[int | str] = ["same", "valid", 0, 1]
    padding = draw(st.sampled_from(options))
    return Layer(
        spatial=draw(st.sampled_from([0, 1, 2, 2, 3])),
        kernel=draw(st.sampled_from([1, 2])),
        groups=draw(st.sampled_from([1, 2, 4])),
        stride=1 if padding == "same" else draw(st.sampled_from([1, 2])),
        dilation=1 if padding == "valid" else draw(st.sampled_from([1, 2])) if padding else 1,
        padding=padding,
        bias=draw(st.booleans()),
        affine=draw(st.booleans()),
        eps=draw(st.sampled_from([1e-3, 1e-5, 1e-12])),
        log_variance=draw(st.floats(-6, 6)),
        seed=draw(st.integers(0, 999)),
    )


def build(layer: Layer) -> Net:
    torch.manual_seed(layer.seed)
    norms = (nn.BatchNorm1d, nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
    norm = norms[layer.spatial](8, eps=layer.eps, affine=layer.affine)
    if layer.spatial == 0:
        module: nn.Module = nn.Linear(256, 8, bias=layer.bias)
    else:
        kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[layer.spatial - 1]
        module = kind(
            4,
            8,
            layer.kernel,
            layer.stride,
            layer.padding,
            dilation=layer.dilation,
            groups=layer.groups,
            bias=layer.bias,
        )

    def forward(m: Net, x: Tensor) -> Tensor:
        x = torch.cat([x, x[:, :1] ** 2], 1)  # [N, 4, 8, 8]
        x = (x.flatten(1), x.flatten(2), x, x.unflatten(2, (2, 4)))[layer.spatial]
        return m.norm(m.layer(x)).flatten(1)  # type: ignore[no-any-return]

    result = net(forward, layer=module, norm=norm)
    spread = torch.linspace(-1, 1, 8)
    norm.get_buffer("running_var").copy_(10.0 ** (layer.log_variance + spread))
    return result


@settings(max_examples=12, deadline=None)
@given(layers())
def test_any_convolution_or_linear_layer_folds_to_the_float64_oracle(layer: Layer) -> None:
    module = build(layer)
    result = assert_folds(module, 1)
    (row,) = result.rows
    norm = module.norm
    variance = norm.get_buffer("running_var").double()
    gamma = norm.weight.detach().double() if layer.affine else torch.ones(8, dtype=torch.float64)
    assert row.max_scale == pytest.approx(float((gamma / (variance + layer.eps).sqrt()).abs().max()), rel=1e-12)
    assert row.min_variance == float(variance.min())
    assert (row.layer, row.norm, row.channels) == ("layer", "norm", 8)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 999), st.floats(-4, 4))
def test_the_bound_is_reached_by_the_worst_input_and_never_passed(seed: int, log_variance: float) -> None:
    torch.manual_seed(seed)
    linear, norm = nn.Linear(192, 8), nn.BatchNorm1d(8)
    module = net(lambda m, x: m.norm(m.linear(x.flatten(1))), linear=linear, norm=norm)
    norm.get_buffer("running_var").fill_(10.0**log_variance)
    result = folded(module)
    weight, bias = (result.captured.module.get_parameter(f"linear.{name}").double() for name in ("weight", "bias"))
    scale = norm.weight.double() / (norm.get_buffer("running_var").double() + norm.eps).sqrt()
    weight_error = (weight - linear.weight.double() * scale[:, None]).detach()
    shift = linear.bias.double() - norm.get_buffer("running_mean").double()
    bias_error = (bias - (shift * scale + norm.bias.double())).detach()
    # |x| <= 1 with the signs of one row's errors: there every term of that row adds up.
    inputs = weight_error.sign() * torch.where(bias_error < 0, -1.0, 1.0)[:, None]
    worst = float((inputs @ weight_error.T + bias_error).abs().max())
    assert worst > 0
    assert worst == pytest.approx(result.rows[0].bound, rel=1e-6)


@settings(max_examples=8, deadline=None)
@given(layers())
def test_no_image_within_one_passes_the_bound(layer: Layer) -> None:
    module = build(layer)
    result = folded(module)
    rounded = copy.deepcopy(result.captured.module).double()
    x = images(4, seed=layer.seed).double().sign()
    oracle = evaluate(copy.deepcopy(module).double(), x)
    slack = 1e-12 * float(oracle.abs().max())
    bound = result.rows[0].bound
    assert float((evaluate(rounded, x) - oracle).abs().max()) <= bound + slack
    # Rounding to 24 bits: at most half a step of every weight, and of the bias.
    weight = result.captured.module.get_parameter("layer.weight").double()
    bias = result.captured.module.get_parameter("layer.bias").double()
    assert bound <= float((weight.abs().flatten(1).sum(1) + bias.abs()).max()) * 2**-24 * 1.001 + 1e-40


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("spatial", [1, 2, 3])
def test_a_transposed_convolution_folds(spatial: int, bias: bool) -> None:
    kind = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)[spatial - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[spatial - 1]

    def forward(m: Net, x: Tensor) -> Tensor:
        x = (x.flatten(2), x, x.unflatten(2, (2, 4)))[spatial - 1]
        return m.norm(m.layer(x)).flatten(1)  # type: ignore[no-any-return]

    layer = kind(3, 5, 3, stride=2, padding=1, output_padding=1, bias=bias)
    assert_folds(net(forward, layer=layer, norm=norm(5)), 1)


def test_a_functional_norm_folds() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        x = F.conv2d(x, m.weight, padding=1)
        return F.batch_norm(x, m.mean, m.var, m.gamma, None, eps=1e-3).mean((2, 3))

    module = net(forward, weight=nn.Parameter(torch.randn(4, 3, 3, 3)), gamma=nn.Parameter(torch.randn(4)))
    module.register_buffer("mean", torch.randn(4))
    module.register_buffer("var", torch.rand(4) + 0.5)
    assert_folds(module, 1)


@pytest.mark.parametrize("own_bias", [True, False])
def test_functional_layers_of_one_module_do_not_overwrite_each_others_bias(own_bias: bool) -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        for index in range(4):
            bias = getattr(m, f"bias{index}") if own_bias else None
            x = torch.relu(m.get_submodule(f"bn{index}")(F.conv2d(x, getattr(m, f"weight{index}"), bias, padding=1)))
        return x.mean((2, 3))

    weights = {f"weight{index}": nn.Parameter(torch.randn(3, 3, 3, 3) / 5) for index in range(4)}
    biases = {f"bias{index}": nn.Parameter(torch.randn(3)) for index in range(4)}
    norms = {f"bn{index}": nn.BatchNorm2d(3) for index in range(4)}
    assert_folds(net(forward, **weights, **biases, **norms), 4)


def test_an_epsilon_of_integer_zero_folds() -> None:
    module = conv_norm()
    module.get_submodule("bn").eps = 0  # type: ignore[assignment]
    assert_folds(module, 1)


def test_one_norm_after_two_convolutions_folds_into_both() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        return m.bn(m.b(torch.relu(m.bn(m.a(x))))).mean((2, 3))  # type: ignore[no-any-return]

    module = net(forward, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3, bias=False), bn=nn.BatchNorm2d(4))
    result = assert_folds(module, 2)
    assert [(row.layer, row.norm) for row in result.rows] == [("a", "bn"), ("b", "bn")]


def test_two_norms_in_a_row_both_fold() -> None:
    module = net(
        lambda m, x: m.b(m.a(m.conv(x))).mean((2, 3)),
        conv=nn.Conv2d(3, 4, 3),
        a=nn.BatchNorm2d(4),
        b=nn.BatchNorm2d(4),
    )
    result = folded(module)
    assert [row.norm for row in result.rows] == ["a", "b"]
    assert sqnr(evaluate(module, images()), evaluate(result.captured.module, images())) >= 100


def test_a_bias_shared_with_another_layer_stays_what_it_was_there() -> None:
    a, b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    b.bias = a.bias
    module = net(lambda m, x: (m.bn(m.a(x)) + m.b(x)).mean((2, 3)), a=a, b=b, bn=nn.BatchNorm2d(4))
    assert_folds(module, 1)


def test_a_bias_read_elsewhere_stays_what_it_was_there() -> None:
    module = net(lambda m, x: m.bn(m.conv(x)).mean((2, 3)) + m.conv.bias, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))
    assert_folds(module, 1)


@pytest.mark.parametrize("make", [lambda: cifar("A"), lambda: cifar("B"), bottleneck], ids=["a", "b", "bottleneck"])
def test_every_norm_of_a_residual_network_folds(make) -> None:
    module = make()
    result = assert_folds(module, sum(isinstance(part, nn.BatchNorm2d) for part in module.modules()))
    norms = [path for path, part in module.named_modules() if isinstance(part, nn.BatchNorm2d)]
    assert sorted(row.norm for row in result.rows) == sorted(norms)


@pytest.mark.parametrize("name", ["resnet10t", "seresnet18"])
def test_networks_of_timm_fold(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    module = timm.create_model(name, pretrained=False, num_classes=4).eval()
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in module.modules())
    x = torch.rand(2, 3, 32, 32)
    result = folded(module)
    assert (len(result.rows), len(result.refused)) == (norms, 0)
    assert sqnr(evaluate(module, x), evaluate(result.captured.module, x)) >= 100


def test_a_norm_with_activation_of_timm_folds() -> None:
    timm_layers = pytest.importorskip("timm.layers")
    module = net(lambda m, x: m.bn(m.conv(x)).mean((2, 3)), conv=nn.Conv2d(3, 4, 3), bn=timm_layers.BatchNormAct2d(4))
    assert_folds(module, 1)


# --- what stays --------------------------------------------------------------------------------------------------


def two_uses(m: Net, x: Tensor) -> Tensor:
    return (m.bn(m.conv(x)) + m.conv(x * 2)).mean((2, 3))  # type: ignore[no-any-return]


def test_a_convolution_called_twice_keeps_its_norm() -> None:
    assert_stays(net(two_uses, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)), "weight of conv is used more than once")


def test_tied_weights_keep_their_norms() -> None:
    a, b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
    b.weight = a.weight
    module = net(
        lambda m, x: (m.bn_a(m.a(x)) - m.bn_b(m.b(x))).mean((2, 3)),
        a=a,
        b=b,
        bn_a=nn.BatchNorm2d(4),
        bn_b=nn.BatchNorm2d(4),
    )
    assert_stays(module, "is used more than once", stays=2)


def test_an_output_read_before_the_norm_keeps_it() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.conv(x)
        return (m.bn(y) + y).mean((2, 3))  # type: ignore[no-any-return]

    module = net(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))
    assert_stays(module, "the output of conv is also read by")


def test_a_norm_before_its_convolution_stays() -> None:
    assert_stays(pre_activation(), "pre-activation", folds=1)


def test_a_norm_on_the_image_stays() -> None:
    module = net(lambda m, x: m.conv(m.bn(x)).mean((2, 3)), bn=nn.BatchNorm2d(3), conv=nn.Conv2d(3, 4, 3))
    assert_stays(module, "pre-activation")


def test_a_norm_of_each_batch_stays() -> None:
    module = net(
        lambda m, x: m.bn(m.conv(x)).mean((2, 3)),
        conv=nn.Conv2d(3, 4, 3),
        bn=nn.BatchNorm2d(4, track_running_stats=False),
    )
    with torch.no_grad():
        module.get_parameter("bn.bias").fill_(1.0)  # means of normalised values are 0 without it
    assert_stays(module, "no running statistics", through_onnx=False)


def test_a_norm_in_training_mode_stays() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = F.batch_norm(m.conv(x), m.bn.running_mean, m.bn.running_var, m.bn.weight, m.bn.bias, training=True)
        return torch.relu(y).mean((2, 3))

    module = net(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4))
    result = folded(module)
    assert [row.reason.split(":")[0] for row in result.refused] == ["it is in training mode"]
    assert not result.rows


def test_a_standardised_weight_keeps_its_norm() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        weight = m.conv.weight - m.conv.weight.mean((1, 2, 3), keepdim=True)
        return m.bn(F.conv2d(x, weight, m.conv.bias)).mean((2, 3))  # type: ignore[no-any-return]

    assert_stays(net(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)), "is computed from other tensors")


def test_a_standardised_convolution_of_timm_accounts_for_both_of_its_norms() -> None:
    timm_layers = pytest.importorskip("timm.layers")
    module = net(lambda m, x: m.bn(m.conv(x)).mean((2, 3)), conv=timm_layers.StdConv2d(3, 4, 3), bn=nn.BatchNorm2d(4))
    assert_stays(module, "the weight of conv is computed", stays=2)


def test_computed_scales_keep_their_norm() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.conv(x)
        return F.batch_norm(y, m.bn.running_mean, m.bn.running_var, m.bn.weight.abs(), m.bn.bias).mean((2, 3))

    assert_stays(net(forward, conv=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)), "parameters are computed")


def test_a_linear_layer_over_another_axis_keeps_its_norm() -> None:
    module = net(
        lambda m, x: m.bn(m.fc(x.flatten(2))).mean(2), fc=nn.Linear(64, 3), bn=nn.BatchNorm1d(3)
    )  # [N, 3, 64] -> [N, 3, 3]: as many channels on both axes
    assert_stays(module, "fc gives 3 dimensions")


def test_a_grouped_transposed_convolution_keeps_its_norm() -> None:
    module = net(
        lambda m, x: m.bn(m.up(m.conv(x))).mean((2, 3)),
        conv=nn.Conv2d(3, 4, 3),
        up=nn.ConvTranspose2d(4, 4, 2, groups=2),
        bn=nn.BatchNorm2d(4),
    )
    assert_stays(module, "transposed convolution of 2 groups")


def test_weights_that_would_overflow_keep_their_norm() -> None:
    module = conv_norm()
    norm = module.get_submodule("bn")
    norm.eps = 0.0  # type: ignore[assignment]
    norm.get_buffer("running_var").fill_(1e-44)
    with torch.no_grad():
        module.get_parameter("conv.weight").mul_(1e22)
        module.get_parameter("bn.weight").fill_(1.0)
    result = folded(module)
    assert [row.reason.split(":")[0] for row in result.refused] == ["its folded weights are not finite in float32"]
    assert norms_in(result) == 1
    assert all(value.isfinite().all() for value in result.captured.module.state_dict().values())


def test_another_reader_of_the_weight_keeps_the_norm() -> None:
    module = net(
        lambda m, x: m.bn(m.conv(x)).mean((2, 3)) * m.conv.weight.abs().mean(),
        conv=nn.Conv2d(3, 4, 3),
        bn=nn.BatchNorm2d(4),
    )
    assert_stays(module, "used more than once")


# --- contract ----------------------------------------------------------------------------------------------------


def test_neither_the_module_nor_its_captured_graph_is_changed() -> None:
    module = cifar("B")
    graph = capture(module, SHAPE)
    weights = {name: value.clone() for name, value in module.state_dict().items()}
    tensors = {name: value.clone() for name, value in graph.module.state_dict().items()}
    x = images()
    outputs, text = evaluate(module, x), str(graph.module.graph)
    fold(graph)
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())
    assert all(torch.equal(value, tensors[name]) for name, value in graph.module.state_dict().items())
    assert str(graph.module.graph) == text
    assert norms_in(graph) == 9
    assert torch.equal(evaluate(module, x), outputs)
    assert torch.equal(evaluate(graph.module, x), outputs)
    assert any(isinstance(part, nn.BatchNorm2d) for part in module.modules())


def test_a_second_fold_finds_nothing() -> None:
    once = folded(cifar())
    twice = fold(once.captured)
    assert (twice.rows, twice.refused) == ((), ())
    assert torch.equal(evaluate(once.captured.module, images()), evaluate(twice.captured.module, images()))


def test_parameters_that_nothing_reads_are_gone() -> None:
    names = set(folded(cifar()).captured.module.state_dict())
    assert not [name for name in names if "bn" in name]
    assert "layer1.0.conv1.bias" in names


def test_rows_become_plain_values() -> None:
    document = folded(pre_activation()).to_json()
    assert [row["norm"] for row in document["rows"]] == ["stem_norm"]
    assert [row["norm"] for row in document["refused"]] == ["norm"]
