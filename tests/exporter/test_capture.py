from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from exporter.graph.capture import InputShape, capture, module_path
from runtimes.errors import GraphError
from tests.exporter.graphs import SHAPE, Net, cifar, conv_norm, evaluate, images, net, sqnr

Forward = Callable[[Net, Tensor], Tensor]


def headed(forward: Callable[[Tensor], object]) -> Net:
    """A convolution, then whatever is given on its pooled output ``[N, 4]``."""
    return net(lambda m, x: forward(m.conv(x).mean((2, 3))), conv=nn.Conv2d(3, 4, 3))  # type: ignore[arg-type, return-value]


def message(module: nn.Module, shape: InputShape = SHAPE) -> str:
    with pytest.raises(GraphError) as caught:
        capture(module, shape)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_a_free_batch_takes_any_number_of_images(count: int) -> None:
    module = cifar()
    graph = capture(module, InputShape(3, 16, 16)).module
    x = images(count, InputShape(3, 16, 16))
    assert torch.equal(evaluate(graph, x), evaluate(module, x))


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_a_fixed_batch_is_traced_as_given(batch: int) -> None:
    module = conv_norm()
    shape = InputShape(3, 8, 8, batch=batch)
    graph = capture(module, shape).module
    x = images(batch)
    assert torch.equal(evaluate(graph, x), evaluate(module, x))
    placeholder = next(node for node in graph.graph.nodes if node.op == "placeholder")
    assert list(placeholder.meta["val"].shape) == [batch, 3, 8, 8]


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (33, 17)])
def test_a_free_size_takes_other_sizes_than_the_traced_one(size: tuple[int, int]) -> None:
    module = cifar("B")
    graph = capture(module, InputShape(3, 16, 16, dynamic_size=True)).module
    x = images(2, InputShape(3, *size))
    assert torch.equal(evaluate(graph, x), evaluate(module, x))


def test_the_module_is_left_as_it_was() -> None:
    module = cifar()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    x = images(2)
    outputs = evaluate(module, x)
    flags = [part.training for part in module.modules()]
    graph = capture(module, SHAPE).module
    evaluate(graph, x)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert [part.training for part in module.modules()] == flags
    assert torch.equal(evaluate(module, x), outputs)


def test_every_operator_knows_its_module_path() -> None:
    graph = capture(cifar(), SHAPE).module.graph
    paths = {module_path(node) for node in graph.nodes if node.target is torch.ops.aten.conv2d.default}
    stages = {f"layer{stage}.0.conv{index}" for stage in (1, 2, 3) for index in (1, 2)}
    assert paths == {"conv1"} | stages


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.fc(x.view(2, -1)),
        lambda m, x: x.view(2, -1),
        lambda m, x: m.fc(x.flatten(1) + torch.zeros(2, 1)),
    ],
    ids=["view_linear", "view", "constant_rows"],
)
def test_a_network_that_freezes_the_batch_is_told_to_fix_it(forward: Forward) -> None:
    text = message(net(forward, fc=nn.Linear(192, 4)))
    assert "fixes a dimension" in text
    assert text.endswith("give --batch N")


@pytest.mark.parametrize("batch", [None, 2])
def test_a_network_that_needs_its_size_is_told_so(batch: int | None) -> None:
    module = net(lambda m, x: m.fc(x.flatten(1)), fc=nn.Linear(192, 4))
    text = message(module, InputShape(3, 8, 8, batch, dynamic_size=True))
    assert "takes 8x8 images and not 40x72" in text
    assert text.endswith("give no --dynamic-size")


@pytest.mark.parametrize(
    "forward",
    [lambda y: y if y.sum() > 0 else -y, lambda y: y[: int(y.sum().item())]],
    ids=["branch", "length"],
)
def test_control_flow_on_values_is_refused(
    forward: Callable[[Tensor], Tensor], capfd: pytest.CaptureFixture[str]
) -> None:
    text = message(headed(forward))
    assert "depends on the values" in text
    assert "--batch" not in text
    printed = capfd.readouterr()
    assert not printed.out
    assert not printed.err


@pytest.mark.parametrize(
    ("forward", "found"),
    [
        (lambda y: (y, y), "a tuple"),
        (lambda y: (y,), "a tuple"),
        (lambda y: {"logits": y}, "a dict"),
        (lambda y: y.sum(1), "1 dimensions"),
        (lambda y: y[:, :, None], "3 dimensions"),
        (lambda y: y.argmax(1, keepdim=True), "int64"),
        (lambda y: 3, "no tensor"),
    ],
    ids=["tuple", "tuple_of_one", "dict", "vector", "rank_3", "classes", "number"],
)
def test_anything_but_one_tensor_of_logits_is_refused(forward: Callable[[Tensor], object], found: str) -> None:
    text = message(headed(forward))
    assert found in text
    assert "logits [N, classes]" in text


@pytest.mark.parametrize(
    "forward",
    [
        lambda y: y.mean(0, keepdim=True),
        lambda y: y.repeat(2, 1),
        lambda y: y.reshape(-1, 2),
        lambda y: y[y[:, 0] > 0],
    ],
    ids=["one_row", "two_rows_each", "split_rows", "some_rows"],
)
def test_another_number_of_rows_than_images_is_refused(forward: Callable[[Tensor], Tensor]) -> None:
    assert "one row of a fixed number of logits for each image" in message(headed(forward))


def test_a_number_of_logits_that_follows_the_size_is_refused() -> None:
    module = net(lambda m, x: x.flatten(1))
    capture(module, SHAPE)
    assert "fixed number of logits" in message(module, InputShape(3, 8, 8, dynamic_size=True))


def test_wrong_channels_name_the_option() -> None:
    text = message(conv_norm(), InputShape(4, 8, 8))
    assert "4 channels" in text
    assert "--in-channels" in text


@pytest.mark.parametrize(
    "layer", [nn.Conv2d(3, 4, 5), nn.MaxPool2d(5), nn.AvgPool2d(5)], ids=["conv", "maxpool", "avgpool"]
)
def test_a_too_small_image_names_the_option(layer: nn.Module) -> None:
    text = message(net(lambda m, x: m.layer(x).flatten(1), layer=layer), InputShape(3, 2, 2))
    assert "2x2" in text
    assert "--input-size" in text


@pytest.mark.parametrize(("path", "said"), [("", "the network is"), ("bn", "module 'bn' is")])
def test_training_mode_is_refused_before_anything_is_touched(path: str, said: str) -> None:
    module = conv_norm()
    (module.get_submodule(path) if path else module).train()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    text = message(module)
    assert said in text
    assert ".eval()" in text
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_an_in_place_operation_keeps_its_meaning() -> None:
    def forward(m: Net, x: Tensor) -> Tensor:
        y = m.conv(x)
        z = y * 2
        y.relu_()
        return m.fc((y + z).mean((2, 3)))  # type: ignore[no-any-return]

    module = net(forward, conv=nn.Conv2d(3, 4, 3), fc=nn.Linear(4, 2))
    x = images()
    assert sqnr(evaluate(module, x), evaluate(capture(module, SHAPE).module, x)) > 140
