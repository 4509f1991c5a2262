"""fuse on whole networks from other packages and on hand-written U-Nets: what it finds, and that
nothing else changes. Everything runs in float64, where both forms agree to 1e-10.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest
import torch
from decoder_networks import CASES
from torch import Tensor, nn

from stripctx import functional, fuse, unfuse
from stripctx.fusion import cost

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # many warnings of other packages
]
every_case = pytest.mark.parametrize("name", CASES)
# Their decoders are like those of other networks here, and tracing is slow.
ALIKE = {
    "smp MAnet", "smp Unet nearest", "smp UnetPlusPlus", "smp UPerNet", "smp UPerNet MiT",
    "smp DeepLabV3Plus", "smp FPN", "smp Linknet", "smp Segformer", "smp Segformer MiT",
    "timm HRNet", "mmseg FastSCNN", "mmseg HRNet", "mmseg ICNet", "mmseg UPerHead",
    "transformers Data2Vec", "transformers UperNet ConvNeXt", "transformers UperNet Swin",
    "transformers SegFormer 768",
}  # fmt: skip
CONVOLUTIONS = ("pyramid_conv",)
SUMS = ("pyramid_add", "pyramid_add_relu")


@pytest.fixture(autouse=True)
def _float64() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture(autouse=True)
def _always_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The maps in these tests are too small for the cost model."""

    def pays(level: Any, size: Any, *_: Any) -> bool:
        return all(small <= large for small, large in zip(level[2:], size, strict=True))

    monkeypatch.setattr(cost, "pays", pays)


def make(name: str, training: bool = False) -> nn.Module:
    torch.manual_seed(0)
    network = CASES[name].build().to(torch.float64).train(training)
    for module in network.modules():  # so that parameters differ from the initial 0 and 1
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return network


def image(name: str) -> Tensor:
    return torch.randn(2, 3, *CASES[name].size, generator=torch.Generator().manual_seed(1))


def flat(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, Mapping):
        value = value.values()
    return [one for part in value for one in flat(part)]


def close(ours: list[Tensor], theirs: list[Tensor]) -> None:
    """Equal to within 1e-10 of the largest value."""
    assert [type(one) for one in ours] == [type(one) for one in theirs]
    scale = max(1.0, *(float(one.detach().abs().max()) for one in theirs if one.numel()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10 * scale)


def step(network: nn.Module, x: Tensor) -> dict[str, list[Tensor]]:
    """A step of SGD; returns the outputs, all gradients, and the state after it."""
    optimizer = torch.optim.SGD(network.parameters(), 1e-3)
    x = x.clone().requires_grad_()
    torch.manual_seed(2)
    out = flat(network(x))
    sum((one * torch.linspace(-1, 1, one.numel()).view_as(one)).sum() for one in out).backward()
    parameters = list(network.parameters())
    with_gradient = [one for one in (x, *parameters) if one.grad is not None]
    gradients = [one.grad.clone() for one in with_gradient]
    assert x.grad is not None
    optimizer.step()
    state = [one for one in network.state_dict().values() if one.is_floating_point()]
    return {"outputs": out, "gradients": gradients, "state": state}


def calls(network: nn.Module, x: Tensor) -> tuple[int, int]:
    """The numbers of convolutions and of sums that took small interpolated maps."""
    seen: Counter[str] = Counter()

    def counted(name: str) -> Callable[..., Any]:
        function = getattr(functional, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            seen[name] += 1
            return function(*args, **kwargs)

        return call

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        for name in (*CONVOLUTIONS, *SUMS):
            patch.setattr(functional, name, counted(name))
        network(x)
    return sum(seen[name] for name in CONVOLUTIONS), sum(seen[name] for name in SUMS)


@every_case
def test_finds_every_pattern(name: str) -> None:
    """With and without an example; the report has a line for each convolution."""
    network, x, case = make(name), image(name), CASES[name]
    assert calls(network, x) == (0, 0)
    fuse(network)
    assert calls(network, x) == (case.convolutions, case.sums)
    unfuse(network)
    report = fuse(network, x)
    assert calls(network, x) == (case.convolutions, case.sums)
    taken = [one for one in report.convolutions if one.form == "pyramid_conv"]
    assert len(taken) == case.convolutions
    assert all(one.products_after < one.products_before for one in taken)
    assert str(report).count(": pyramid_conv, ") == case.convolutions
    assert bool(report.replaced) == bool(case.convolutions or case.sums)
    if not report.replaced:
        assert all(one.why for one in report.left)


def test_networks_alike_are_there() -> None:
    assert CASES.keys() > ALIKE


@every_case
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_same_results(name: str, training: bool) -> None:
    """Outputs, the gradients of the image and of all parameters, a step, keys; and unfuse."""
    plain, x = make(name, training), image(name)
    fused = copy.deepcopy(plain)
    untouched = copy.deepcopy(plain)
    fuse(fused)
    assert list(fused.state_dict()) == list(plain.state_dict())
    assert [one.training for one in fused.modules()] == [one.training for one in plain.modules()]
    ours, theirs = step(fused, x), step(plain, x)
    for key, want in theirs.items():
        close(ours[key], want)
    unfuse(fused)
    fused.load_state_dict(untouched.state_dict())
    assert [type(one) for one in fused.modules()] == [type(one) for one in plain.modules()]
    results = []
    for network in (fused, untouched):
        torch.manual_seed(3)
        results.append(flat(network(x)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def compiled(network: nn.Module, x: Tensor) -> Any:
    torch._dynamo.reset()
    program = torch.compile(network, fullgraph=True, backend="eager")
    program(x)
    return program


def exported(network: nn.Module, x: Tensor) -> Any:
    return torch.export.export(network, (x,)).module()


def traced(trace: Callable[[nn.Module, Tensor], Any], network: nn.Module, x: Tensor) -> Any:
    """The traced network once fused. Skips the test where the network itself cannot be traced."""
    plain = copy.deepcopy(network)
    fuse(network)
    try:
        return trace(network, x)
    except Exception:
        try:
            trace(plain, x)
        except Exception as error:
            pytest.skip(f"as it was it cannot be: {type(error).__name__}")
        raise


@pytest.mark.parametrize("name", [name for name in CASES if name not in ALIKE])
@pytest.mark.parametrize("trace", [compiled, exported])
def test_traces_like_the_original_network(
    trace: Callable[[nn.Module, Tensor], Any], name: str
) -> None:
    """Traces to one graph with our operators, if it could be traced before."""
    network, x, case = make(name), image(name), CASES[name]
    with torch.no_grad():
        program = traced(trace, network, x)
        results = []
        for run in (program, network):
            torch.manual_seed(4)
            results.append(flat(run(x)))
        close(*results)
    if trace is exported:
        names = Counter(str(node.target) for node in program.graph.nodes)
        ours = ("stripctx.pyramid_taps_add.default", "stripctx.pyramid_add_relu.default")
        assert sum(names[one] for one in ours) == case.convolutions + case.sums
