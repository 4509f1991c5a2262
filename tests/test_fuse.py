"""fuse and unfuse on upstream modules: same results, unchanged state, and modules left alone."""

from __future__ import annotations

import copy
import doctest
import io
import pickle
from collections.abc import Callable, Iterator
from typing import Any

import operator_checks
import oracles
import pytest
import torch
import upstream_models
from operator_checks import DEVICE
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import stripctx
from stripctx import fuse, fusion, unfuse
from stripctx.fusion import cost

MMSEG_NORM = {"norm_cfg": {"type": "BN"}}
MMSEG_BACKBONE = {
    "type": "ResNetV1c",
    "depth": 18,
    "base_channels": 4,
    "strides": (1, 2, 1, 1),
    "dilations": (1, 1, 2, 4),
    "contract_dilation": True,
    **MMSEG_NORM,
}


def mmseg(kind: str, **options: Any) -> nn.Module:
    """mmseg's whole segmentor: a ResNet, the head, an auxiliary head."""
    head = {"num_classes": 3, "channels": 6, **MMSEG_NORM}
    config = {
        "type": "EncoderDecoder",
        "backbone": MMSEG_BACKBONE,
        "decode_head": {"type": kind, **head, **options},
        "auxiliary_head": {"type": "FCNHead", "in_channels": 16, "in_index": 2, **head},
    }
    return oracles.mmseg().MODELS.build(config)


def mmseg_psp(**options: Any) -> nn.Module:
    return mmseg("PSPHead", in_channels=32, in_index=3, **options)


def mmseg_enc(**options: Any) -> nn.Module:
    channels = {"in_channels": [8, 16, 32], "in_index": (1, 2, 3)}
    return mmseg("EncHead", num_codes=4, add_lateral=True, **channels, **options)


def after_a_map(head: nn.Module) -> nn.Module:
    return nn.Sequential(upstream_models.unit(3, 8, 3), head)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "smp PSPNet": lambda: oracles.smp().PSPNet("", psp_out_channels=6, classes=3),
    "smp UPerNet": lambda: nn.Sequential(
        upstream_models.unit(3, 8, 3), oracles.smp().UPerNetPSPModule(8, 3)
    ),
    "mmseg PSPHead": mmseg_psp,
    "mmseg PSPHead align_corners": lambda: mmseg_psp(align_corners=True),
    "mmseg PSPHead no norm": lambda: mmseg_psp(norm_cfg=None),
    "mmseg EncHead": mmseg_enc,
    "semseg PSPNet": upstream_models.PSPNet,
    "SPNet": upstream_models.SPNet,
    "HANet": upstream_models.HANet,
    "HANet dropout": lambda: upstream_models.HANet(
        layer=2, pos_injection=1, pooling="max", dropout_prob=0.3, pos_noise=1.0
    ),
    "PyTorch-Encoding PSPHead": lambda: after_a_map(upstream_models.PSPHead()),
    "PyTorch-Encoding EncHead": upstream_models.EncHead,
    "PyTorch-Encoding EncHead no logits": lambda: upstream_models.EncHead(se_loss=False),
}
# The fused modules, and the operators that they then use.
PYRAMID_CONV = ("stripctx.pyramid_taps_add",)
EXPECTED: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "smp PSPNet": ({"decoder": "PSPDecoder"}, PYRAMID_CONV),
    "smp UPerNet": ({"1": "PSPModule"}, PYRAMID_CONV),
    "mmseg PSPHead": ({"decode_head": "PSPHead"}, PYRAMID_CONV),
    "mmseg EncHead": (
        {
            "decode_head.enc_module": "EncModule",
            "decode_head.enc_module.encoding.0": "Encoding",
        },
        ("stripctx.encode", "stripctx.channel_gate"),
    ),
    "semseg PSPNet": ({"": "PSPNet"}, PYRAMID_CONV),
    "SPNet": (
        {
            "pretrained.2.spm": "SPBlock",
            "strip_pool1": "StripPooling",
            "pretrained.2": "Bottleneck",
        },
        (
            "stripctx.strip_pool",
            "stripctx.strip_add_relu",
            "stripctx.sigmoid_gate",
            "stripctx.pyramid_pool",
            "stripctx.pyramid_add_relu",
        ),
    ),
    "HANet": ({"hanet0": "HANet_Conv"}, ("stripctx.pyramid_pool", "stripctx.row_gate")),
    "HANet dropout": ({"hanet0": "HANet_Conv"}, ("stripctx.pyramid_max_pool", "stripctx.row_gate")),
    "PyTorch-Encoding PSPHead": ({"1": "PSPHead"}, PYRAMID_CONV),
    "PyTorch-Encoding EncHead": (
        {"encmodule": "EncModule", "encmodule.encoding.3": "Encoding"},
        ("stripctx.encode", "stripctx.channel_gate"),
    ),
}
pytestmark = pytest.mark.filterwarnings("ignore")  # many warnings of other packages


@pytest.fixture(autouse=True)
def every_convolution_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks here are too small for the cost model."""
    monkeypatch.setattr(cost, "pays", lambda *shapes: True)


every_network = pytest.mark.parametrize("name", NETWORKS)
FEW = ("smp PSPNet", "mmseg PSPHead", "mmseg EncHead", "semseg PSPNet", "SPNet", "HANet")
few_networks = pytest.mark.parametrize("name", FEW)


def make(name: str, training: bool = True) -> nn.Module:
    network = NETWORKS[name]().to(DEVICE).double().train(training)
    for module in network.modules():  # so that parameters differ from the initial 0 and 1
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
    return network


def image(batch: int = 3, size: tuple[int, int] = (56, 40)) -> Tensor:
    return torch.randn(batch, 3, *size, dtype=torch.float64, device=DEVICE)


def flat(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [one for part in value for one in flat(part)]


def close(a: Any, b: Any) -> None:
    for x, y in zip(flat(a), flat(b), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-8, atol=1e-9)


class Names(TorchDispatchMode):
    """Records the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.seen.add(str(function).rsplit(".", 1)[0])
        return function(*args, **(kwargs or {}))


def operators(network: nn.Module, x: Tensor) -> set[str]:
    with Names() as names, torch.no_grad():
        network(x)
    return names.seen


def step(network: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor) -> Any:
    """A training step; returns the output and the gradient of x."""
    torch.manual_seed(1)
    leaf = x.clone().requires_grad_()
    optimizer.zero_grad()
    out = network(leaf)
    sum(
        (one * torch.linspace(-1, 1, one.numel()).view_as(one)).sum() for one in flat(out)
    ).backward()
    optimizer.step()
    return out, leaf.grad


@every_network
@pytest.mark.parametrize("training", [True, False])
def test_trains_as_before(name: str, training: bool) -> None:
    """Outputs, gradients and two steps of an optimiser that was created before fusing."""
    plain = make(name, training)
    fused = copy.deepcopy(plain)
    ours, theirs = (
        torch.optim.SGD(network.parameters(), 1e-4, momentum=0.9) for network in (fused, plain)
    )
    assert fuse(fused).replaced
    for size in ((56, 40), (48, 72)):
        x = image(3, size)
        close(step(fused, ours, x), step(plain, theirs, x))
        for (key, a), b in zip(fused.named_parameters(), plain.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None), key
            if a.grad is not None:
                torch.testing.assert_close(a.grad, b.grad, rtol=1e-7, atol=1e-9, msg=key)
        close(list(fused.state_dict().values()), list(plain.state_dict().values()))


@every_network
def test_everything_stays(name: str) -> None:
    """Objects, keys and modes are unchanged by fuse and unfuse."""
    network = make(name)
    network.eval()
    next(network.modules()).requires_grad_(False)
    x = image()
    want = network(x)

    def inventory() -> list[Any]:
        parts: list[Any] = [(k, id(m), m.training) for k, m in network.named_modules()]
        parts += [(k, id(p), p.requires_grad, p._version) for k, p in network.named_parameters()]
        parts += [(k, id(b), b._version) for k, b in network.named_buffers()]
        return [*parts, *network.state_dict()]

    before, random = inventory(), torch.get_rng_state()
    classes = [type(module) for module in network.modules()]
    report = fuse(network)
    assert inventory() == before and torch.equal(torch.get_rng_state(), random)
    for module, kind in zip(network.modules(), classes, strict=True):
        assert isinstance(module, kind) and type(module).__name__ == kind.__name__
    assert {one.path for one in report.replaced} == {
        path
        for (path, module), kind in zip(network.named_modules(), classes, strict=True)
        if type(module) is not kind
    }
    assert "fused by stripctx" in repr(network) or "EncHead" in name
    again = fuse(network)
    assert not again.replaced and len(again.left) >= 1
    assert {one.why for one in again.left} == {"it is already fused"}
    assert sorted(unfuse(network)) == sorted(one.path for one in report.replaced)
    assert [type(module) for module in network.modules()] == classes
    assert inventory() == before and not unfuse(network)
    for a, b in zip(flat(network(x)), flat(want), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("name", EXPECTED)
def test_report_and_operators(name: str) -> None:
    network = make(name, training=False)
    report = fuse(network)
    modules, names = EXPECTED[name]
    found = {one.path: one.name.split(" ")[0] for one in report.replaced}
    assert found.items() >= modules.items() and not report.left
    assert all(path in str(report) for path in modules)
    seen = operators(network, image())
    assert seen >= set(names)
    unfuse(network)
    assert not any(one.startswith("stripctx") for one in operators(network, image()))


@every_network
def test_old_checkpoint(name: str) -> None:
    """States load strictly into a fused network, and a fused network's into a plain one."""
    old, network = make(name, training=False), make(name, training=False)
    fuse(network)
    network.load_state_dict(old.state_dict(), strict=True)
    x = image()
    close(network(x), old(x))
    plain = make(name, training=False)
    plain.load_state_dict(network.state_dict(), strict=True)
    close(plain(x), old(x))


@every_network
def test_copies(name: str) -> None:
    """deepcopy, pickle and torch.save of the whole network keep it fused; unfuse works on
    copies."""
    network = make(name, training=False)
    report = fuse(network)
    x = image()
    want = flat(network(x))
    stream = io.BytesIO()
    torch.save(network, stream)
    stream.seek(0)
    for other in (
        copy.deepcopy(network),
        pickle.loads(pickle.dumps(network)),
        torch.load(stream, weights_only=False),
    ):
        close(other(x), want)
        assert not {id(p) for p in other.parameters()} & {id(p) for p in network.parameters()}
        assert sorted(unfuse(other)) == sorted(one.path for one in report.replaced)
        close(other(x), want)
    state = dict(network.named_parameters()) | dict(network.named_buffers())
    close(torch.func.functional_call(network, state, (x,)), want)


# Tracing.


class Levels(nn.Module):
    """The feature maps of a backbone, all the same."""

    def forward(self, x: Tensor) -> list[Tensor]:
        return [x] * 4


@pytest.mark.slow
@pytest.mark.parametrize("name", FEW[1:])  # the first is like semseg's and takes the longest
def test_compiles(name: str) -> None:
    torch._dynamo.reset()
    network = make(name)
    fuse(network)
    if name == "mmseg PSPHead":  # without the backbone, which takes most of the time
        network = nn.Sequential(upstream_models.unit(3, 32, 3), Levels(), network.decode_head)
    elif name == "mmseg EncHead":
        network = nn.Sequential(upstream_models.unit(3, 6, 3), network.decode_head.enc_module)
    network.double()
    # Backward passes of operators and layers are traced by their own tests, and below.
    compiled = torch.compile(copy.deepcopy(network), fullgraph=True, dynamic=True, backend="eager")
    for size in ((56, 40), (48, 64)):
        results = []
        for run in (network, compiled):
            torch.manual_seed(1)
            results.append(run(image(3, size)))
        close(*results)
    sum(one.sum() for one in flat(results[1])).backward()


@pytest.mark.slow
def test_compiled_before_and_after() -> None:
    """A network compiled earlier is recompiled when it is fused or unfused; with its backward."""
    torch._dynamo.reset()
    network = make("semseg PSPNet", training=False)
    x = image().requires_grad_()
    want = network(x)
    slopes = torch.autograd.grad(want.square().mean(), x)
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    for change in (lambda: None, lambda: fuse(network), lambda: unfuse(network)):
        change()
        out = compiled(x)
        close(out, want)
        close(torch.autograd.grad(out.square().mean(), x), slopes)
    assert fuse(compiled).replaced
    assert "stripctx.pyramid_taps_add" in operators(network, x)


@pytest.mark.slow
@few_networks
@pytest.mark.parametrize("strict", [True, False])
def test_exports(name: str, strict: bool) -> None:
    """The program contains our operators, and no hidden copy of the network."""
    if name.startswith("mmseg") and strict:
        pytest.skip("mmseg's segmentor itself cannot be exported strictly")
    network = make(name, training=False)
    fuse(network)
    x = image()
    program = torch.export.export(network, (x,), strict=strict)
    targets = {str(node.target) for node in program.graph.nodes}
    assert any(target.startswith("stripctx.") for target in targets)
    close(program.module()(x), network(x))
    assert all(not vars(m).get("deferring", False) for m in network.modules())


@few_networks
def test_torchscript_sees_the_own_forward(name: str) -> None:
    network = make(name, training=False)
    fuse(network)
    x = image()
    want = network(x)
    traced = torch.jit.trace(network, x, check_trace=False)
    assert "stripctx" not in str(traced.inlined_graph)
    close(traced(x), want)


# Hooks and other observers of children whose calls are skipped.

WATCHED = {
    "smp PSPNet": ("decoder.psp.blocks.1.pool.0", "decoder.psp.blocks.1", "decoder.conv.0"),
    "mmseg PSPHead": ("decode_head.psp_modules.2.0", "decode_head.bottleneck.conv"),
    "semseg PSPNet": ("ppm.features.0.0", "ppm.features.3", "ppm", "cls", "cls.0"),
    "SPNet": ("pretrained.2.spm.pool1", "pretrained.2.spm", "strip_pool1.pool3"),
    "HANet": ("hanet0.rowpool",),
    "PyTorch-Encoding PSPHead": ("1.conv5.0.pool2", "1.conv5.0", "1.conv5.1"),
    "smp UPerNet": ("1.blocks.0.0", "1.out_conv.0"),
}


@pytest.mark.parametrize(
    ("name", "path"), [(name, path) for name, paths in WATCHED.items() for path in paths]
)
@pytest.mark.parametrize("early", [True, False])
def test_hooks_fire(name: str, path: str, early: bool) -> None:
    """Hooks on a child that fusing skips fire with the tensors they would see otherwise, whether
    they were registered before or after; without them the network is fused again."""
    plain = make(name, training=False)
    network = copy.deepcopy(plain)

    def watch(root: nn.Module, seen: list[Any]) -> list[Any]:
        module = root.get_submodule(path)
        return [
            module.register_forward_pre_hook(lambda m, args: seen.append(args)),
            module.register_forward_hook(lambda m, args, out: seen.append(out)),
            module.register_full_backward_hook(lambda m, ins, outs: seen.append([ins, outs])),
        ]

    seen: list[Any] = []
    wanted: list[Any] = []
    watch(plain, wanted)
    if early:
        handles = watch(network, seen)
        assert fuse(network).replaced
    else:
        fuse(network)
        handles = watch(network, seen)
    x = image()
    for root in (network, plain):
        leaf = x.clone().requires_grad_()
        sum(one.sum() for one in flat(root(leaf))).backward()
    assert all(isinstance(one, Tensor) for one in flat(seen))
    close(seen, wanted)
    assert len(wanted) == 3
    for handle in handles:
        handle.remove()
    fuse(network)
    assert any(one.startswith("stripctx") for one in operators(network, x)) and len(seen) == 3
    close(network(x), plain(x))


def test_parametrised_children() -> None:
    """Weight norms and replaced children, before and after fusing."""
    for path in ("cls.0", "ppm.features.1.1"):
        for wrap in (nn.utils.spectral_norm, nn.utils.parametrizations.weight_norm):
            for late in (True, False):
                plain = make("semseg PSPNet", training=False)
                network = copy.deepcopy(plain)
                if late:
                    fuse(network)
                for root in (plain, network):
                    torch.manual_seed(2)
                    wrap(root.get_submodule(path))
                    root.double()
                if not late:
                    fuse(network)
                x = image()
                close(network(x), plain(x))
    network = make("semseg PSPNet", training=False)
    fuse(network)
    network.ppm.features[1][0] = nn.AdaptiveMaxPool2d(2)
    got = network(image())
    unfuse(network)
    torch.manual_seed(0)
    assert got.shape == network(image()).shape


def test_children_that_become_something_else() -> None:
    """The module's own forward then runs."""
    plain = make("semseg PSPNet", training=False)
    fused = copy.deepcopy(plain)
    fuse(fused)
    for root in (plain, fused):
        root.ppm.features[0] = nn.Conv2d(8, 2, 3, 1, 1).to(DEVICE).double().requires_grad_(False)
        nn.init.constant_(root.ppm.features[0].weight, 0.1)
        nn.init.zeros_(root.ppm.features[0].bias)
    x = image()
    close(fused(x), plain(x))
    head = make("PyTorch-Encoding PSPHead", training=False)[1]
    fuse(head)
    y = torch.randn(2, 8, 9, 7, dtype=torch.float64, device=DEVICE)
    pyramid, rest = head.conv5[0], head.conv5[1:]
    close(rest(pyramid(y)), head(y))


def test_synchronised_norms() -> None:
    network = make("mmseg PSPHead", training=False)
    x = image()
    want = network(x)
    fuse(network)
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    assert synced is network
    close(network(x), want)
    assert "stripctx.pyramid_taps_add" in operators(network, x)


# Other uses of lazy maps.

USES: dict[str, Callable[[Tensor], Any]] = {
    "shape": lambda x: x * x.shape[1] * x.size(0),
    "function": lambda x: nn.functional.relu(x),
    "method": lambda x: x.abs().contiguous(),
    "left operator": lambda x: x + 1,
    "right operator": lambda x: 2 - x,
    "with a tensor": lambda x: x.new_ones(()) * x,
    "in place": lambda x: (x.mul_(2), x)[1],
    "in place by operator": lambda x: -x.__imul__(3),
    "in place by index": lambda x: (x.__setitem__((0, 0), 1.0), x)[1],
    "index": lambda x: x[:, torch.arange(x.shape[1] - 1, -1, -1)],
    "list": lambda x: torch.cat([x[:, :8], torch.sin(x)[:, 8:]], 1),
    "checkpoint": lambda x: torch.utils.checkpoint.checkpoint(torch.tanh, x, use_reentrant=False),
    "twice": lambda x: (x.sum(), x)[1],
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("compiled", [False, True])
def test_a_forward_that_uses_the_pyramid_otherwise(use: str, compiled: bool) -> None:
    if compiled and use in ("checkpoint", "in place by index"):
        pytest.skip("not traced by torch.compile itself")
    torch._dynamo.reset()
    plain = make("semseg PSPNet", training=False)
    plain.use = USES[use]
    fused = copy.deepcopy(plain)
    assert "" in {one.path for one in fuse(fused).replaced}
    run = torch.compile(fused, fullgraph=True, backend="eager") if compiled else fused
    x, y = image().requires_grad_(), image().requires_grad_()
    y.data.copy_(x.data)
    out, want = run(x), plain(y)
    close(out, want)
    for value in (out, want):
        value.square().mean().backward()
    close(x.grad, y.grad)


def test_an_input_that_changes_meanwhile_is_refused() -> None:
    class Changing(upstream_models.PSPNet):
        def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
            features = self.layer0(x)
            pyramid = self.ppm(features)
            features.mul_(2)
            return self.cls(pyramid)

    network = Changing().eval()
    assert {one.path for one in fuse(network).replaced} == {"ppm", ""}
    for guard in (torch.no_grad, torch.enable_grad):
        with guard():
            words = "changed in place while its interpolation waited"
            operator_checks.raises(RuntimeError, words, lambda: network(image().float()))
    unfuse(network)
    assert network(image().float()).isfinite().all()
    with torch.inference_mode():
        fused = make("semseg PSPNet", training=False)
        fuse(fused)
        assert fused(image()).is_inference()


def test_children_called_alone_give_tensors() -> None:
    network = make("semseg PSPNet", training=False)
    fuse(network)
    network(image())
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64, device=DEVICE)
    assert isinstance(network.ppm(x), Tensor)
    head = make("mmseg PSPHead", training=False).decode_head
    fuse(head)
    maps = head.psp_modules(torch.randn(2, 32, 9, 7, dtype=torch.float64, device=DEVICE))
    assert all(isinstance(one, Tensor) for one in maps)


def test_a_forward_that_raises_leaves_nothing_behind() -> None:
    network = make("semseg PSPNet", training=False)
    fuse(network)
    network.use = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        network(image())
    assert not fusion.scope.is_open()
    assert isinstance(nn.functional.interpolate(image(), scale_factor=2), Tensor)


def test_other_convolutions_get_the_tensor() -> None:
    """Even if a convolution was modified after fusing."""
    for changes in (
        {"stride": (2, 2)},
        {"padding_mode": "reflect", "_reversed_padding_repeated_twice": [1, 1, 1, 1]},
        {"padding": "same"},
        {"dilation": (2, 2)},
    ):
        plain = make("semseg PSPNet", training=False)
        fused = copy.deepcopy(plain)
        fuse(fused)
        for root in (plain, fused):
            vars(root.cls[0]).update(changes)
        x = image()
        close(fused(x), plain(x))


# Modules that are not fused, and the reasons.


def changed(module: nn.Module, **attributes: Any) -> nn.Module:
    for path, value in attributes.items():
        *parents, name = path.split("__")
        owner = module.get_submodule(".".join(parents))
        setattr(owner, name, value)
    return module


def ppm(kind: type[nn.Module] = upstream_models.PPM, **options: Any) -> nn.Module:
    return kind(8, 2, (1, 2, 3, 6), **options)


def plain_forward(x: Tensor) -> Tensor:
    return x


LEFT: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "forward": (
        lambda: changed(ppm(), forward=plain_forward),
        "it has a forward of its own, set on the object",
    ),
    "groups": (
        lambda: changed(upstream_models.SPBlock(8, 8), conv1=nn.Conv2d(8, 8, (3, 1), groups=2)),
        "conv1 has groups 2, not 1",
    ),
    "padding mode": (
        lambda: changed(upstream_models.SPBlock(8, 8), conv2__padding_mode="circular"),
        "conv2 has padding_mode 'circular', not 'zeros'",
    ),
    "activation": (
        lambda: changed(upstream_models.SPBlock(8, 8), relu=nn.GELU()),
        "relu is GELU",
    ),
    "batch norm over rows": (
        lambda: upstream_models.HANet_Conv(8, 6, r_factor=2, norm=nn.BatchNorm2d),
        "its own forward raises ValueError: expected 4D input",
    ),
    "rows": (
        lambda: changed(upstream_models.HANet_Conv(8, 6), rowpool=nn.AdaptiveAvgPool2d((16, 2))),
        "rowpool pools to (16, 2), not to (L, 1)",
    ),
    "codewords": (
        lambda: changed(upstream_models.Encoding(8, 4), extra=nn.Parameter(torch.zeros(1))),
        "not codewords (K, D) and scale (K)",
    ),
    "encoding": (
        lambda: changed(upstream_models.EncModule(8, 3, 4), encoding__0=nn.Identity()),
        "encoding.0 is Identity, not Conv2d",
    ),
    "names": (
        lambda: changed(upstream_models.PSPNet().ppm, upstream=nn.Identity()),
        "it has upstream, a name that fuse needs",
    ),
    "strips": (
        lambda: changed(upstream_models.StripPooling(8, (5, 3), upstream_models.UP), _up_kwargs={}),
        "no _up_kwargs that say align_corners",
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_is_left(name: str) -> None:
    construct, why = LEFT[name]
    network = nn.ModuleDict({"head": construct()})
    kind = type(network["head"])
    report = fuse(network)
    entry = next(one for one in report.left if one.path == "head")
    assert why in entry.why and not isinstance(network["head"], fusion._REPLACEMENTS)
    assert isinstance(network["head"], kind)
    assert f"head: {kind.__name__}: " in str(report)


@pytest.mark.parametrize(
    "changes", [{"cls__0__stride": (2, 2)}, {"cls__0": nn.Identity()}, {"cls__0__groups": 2}]
)
def test_a_convolution_that_cannot_take_a_pyramid(changes: dict[str, Any]) -> None:
    """With an example the report says that nothing was found; the network is unchanged."""
    network = changed(upstream_models.PSPNet(), **changes).eval()
    report = fuse(network, image().float())
    assert not report.replaced and type(network) is upstream_models.PSPNet
    assert ("", "PSPNet") in [(one.path, one.name) for one in report.left]


def test_nothing_to_fuse() -> None:
    report = fuse(nn.Sequential(stripctx.StripPooling(8), stripctx.PyramidPooling(8)))
    assert not report.replaced and not report.left and "nothing" in str(report)


# Devices, dtypes, modes, processes.


@few_networks
def test_other_dtypes(name: str) -> None:
    network = make(name, training=False)
    x = image()
    want = network(x)
    fuse(network)
    with torch.autocast(DEVICE.type, dtype=torch.bfloat16):
        fused = flat(network.float()(x.float()))
        unfuse(network)
        plain = flat(network(x.float()))
        fuse(network)
    for a, b, c in zip(fused, plain, flat(want), strict=True):
        assert a.dtype == b.dtype
        assert operator_checks.relative_error(a, c) < max(
            2 * operator_checks.relative_error(b, c), 0.02
        )
    last = network.to(memory_format=torch.channels_last)
    for a, b in zip(
        flat(last(x.float().contiguous(memory_format=torch.channels_last))),
        flat(want),
        strict=True,
    ):
        assert operator_checks.relative_error(a, b) < 1e-4


def test_on_meta() -> None:
    with torch.device("meta"):
        network = upstream_models.PSPNet()
    assert {one.path for one in fuse(network).replaced} == {"ppm", ""}
    assert next(network.parameters()).is_meta


@pytest.fixture
def process_group(tmp_path: Any) -> Iterator[None]:
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_data_parallel(process_group: None) -> None:
    """A fused network works in DDP: it contains the same Parameter objects."""
    plain = make("semseg PSPNet")
    wrapped = nn.parallel.DistributedDataParallel(copy.deepcopy(plain))
    assert {one.path for one in fuse(wrapped).replaced} >= {"module.ppm", "module"}
    x = image()
    for root in (wrapped, plain):
        torch.manual_seed(1)
        sum(one.square().mean() for one in root(x)).backward()
    for a, b in zip(wrapped.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-8, atol=1e-10)


def test_attention_is_still_given() -> None:
    """HANet's forward returns more on request; its own forward then runs."""
    layer = upstream_models.HANet_Conv(8, 6, r_factor=2).double().eval()
    x, out = (torch.randn(2, c, 20, 7, dtype=torch.float64) for c in (8, 6))
    want = layer(x, out, return_attention=True)
    fuse(layer)
    close(layer(x, out, None, True), want)
    close(layer(x, out, attention_loss=True)[0], want[0])
    close(layer(x, out, return_attention=False), want[0])


def test_examples_run() -> None:
    assert doctest.testmod(fusion).failed == 0
