"""Networks of smp and transformers in recipes: built by name, fused, trained, loaded."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch
import torch.nn.functional as F

REPOSITORY = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPOSITORY))

from training_runs import small, train  # noqa: E402

from examples.inference import infer  # noqa: E402
from examples.protocols import WholeImage  # noqa: E402
from examples.training import checkpoint, networks, objective, third_party  # noqa: E402
from examples.training.recipe import Network, Optimizer, RecipeError  # noqa: E402
from examples.training.trainer import Trainer  # noqa: E402
from stripctx import unfuse  # noqa: E402

STAGES = ["stage1", "stage2", "stage3", "stage4"]
SMALL_SEGFORMER = {
    "depths": [1] * 4, "hidden_sizes": [8, 16, 24, 32], "num_attention_heads": [1, 1, 2, 2],
    "decoder_hidden_size": 64,
}  # fmt: skip
CONVNEXT = {
    "model_type": "convnext", "depths": [1] * 4, "hidden_sizes": [8, 16, 24, 32],
    "out_features": STAGES,
}  # fmt: skip
NETWORKS = {
    "smp:Segformer": Network("smp:Segformer", "tu-resnet10t"),
    "smp:UPerNet": Network("smp:UPerNet", "tu-resnet10t"),
    "transformers:Segformer": Network(
        "transformers:SegformerForSemanticSegmentation", "", options=SMALL_SEGFORMER
    ),
    "transformers:UperNet": Network(
        "transformers:UperNetForSemanticSegmentation",
        "",
        options={"backbone_config": CONVNEXT, "hidden_size": 16, "use_auxiliary_head": False},
    ),
}


def build(name: str) -> third_party.Adapted:
    oracles.whole_smp() if name.startswith("smp") else oracles.transformers()
    network: Any = networks.build(NETWORKS[name], 5)
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_network_of_another_package(name: str) -> None:
    """Any size to logits of that size, fused or not; loads from its checkpoint."""
    network = build(name).eval().double()
    assert networks.describe(network).startswith(type(network.network).__name__)
    assert not networks.takes_heights(network)
    image = torch.randn(1, 3, 70, 94, dtype=torch.float64)
    with torch.no_grad():
        fused = network(image)
        assert infer(network, image[0], WholeImage()).shape == (5, 70, 94)
        assert unfuse(network.network)
        plain = network(image)
    assert fused.shape == (1, 5, 70, 94)
    torch.testing.assert_close(fused, plain, rtol=1e-9, atol=1e-9)
    again = build(name).eval().double()
    for state in (network.state_dict(), network.network.state_dict()):
        again.load_state_dict(state)
        torch.testing.assert_close(again(image), plain, rtol=1e-9, atol=1e-9)


def test_padding_is_removed_from_the_result() -> None:
    """The padding at the right and the bottom does not shift the result."""
    network = build("smp:UPerNet").eval().double()
    image = torch.randn(1, 3, 64, 90, dtype=torch.float64)
    padded = F.pad(image, (0, 6, 0, 0), mode="replicate")
    with torch.no_grad():
        expected = network.network(padded)[..., :90]
        torch.testing.assert_close(network(image), expected, rtol=1e-12, atol=1e-12)


def test_recipe_trains_it(tmp_path: Path) -> None:
    oracles.transformers()
    changes = (
        "network.name=transformers:SegformerForSemanticSegmentation",
        f"network.options={SMALL_SEGFORMER}", "optimizer.kind=adamw", "optimizer.rate=1e-3",
        "optimizer.warmup=3", "optimizer.groups=[{match: decode_head, rate: 2}]", "train.epochs=2",
    )  # fmt: skip
    trainer = train(small(tmp_path, *changes), tmp_path / "run")
    assert isinstance(trainer.optimizer, torch.optim.AdamW)
    trained = checkpoint.load_network(tmp_path / "run" / checkpoint.BEST)
    image = torch.randn(1, 3, 40, 56)
    trainer.network.eval()
    with torch.no_grad():
        torch.testing.assert_close(trained.network(image), trainer.network(image))
    start = f"network.start={tmp_path}/run/{checkpoint.LAST}"
    started = Trainer(small(tmp_path, *changes, start), tmp_path / "next")
    for key, value in started.network.state_dict().items():
        assert torch.equal(value, trainer.network.state_dict()[key])


def test_pretrained_weights_of_a_folder(tmp_path: Path) -> None:
    """Loads weights with another number of classes, except for the classifier."""
    package = oracles.transformers()
    config = package.SegformerConfig(num_labels=3, **SMALL_SEGFORMER)
    published = package.SegformerForSemanticSegmentation(config)
    published.save_pretrained(tmp_path / "b0")
    settings = Network(
        "transformers:SegformerForSemanticSegmentation", "", str(tmp_path / "b0"), SMALL_SEGFORMER
    )
    network = networks.build(settings, 5).network
    key = "decode_head.linear_fuse.weight"
    assert torch.equal(network.state_dict()[key], published.state_dict()[key])
    assert network.decode_head.classifier.weight.shape[0] == 5
    other = networks.build(settings, 5, pretrained=False).network
    assert not torch.equal(other.state_dict()[key], published.state_dict()[key])


def test_rate_warms_up() -> None:
    settings = Optimizer(kind="adamw", rate=0.1, power=1.0, warmup=4)
    adamw = objective.optimizer(torch.nn.Linear(2, 2), settings)
    rates = [objective.set_rate(adamw, settings, step, 10) for step in range(6)]
    assert rates == pytest.approx([0.025, 0.045, 0.06, 0.07, 0.06, 0.05])
    assert adamw.param_groups[0]["weight_decay"] == settings.weight_decay


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Network("smp:Segformer2"), "segmentation_models_pytorch has no network Segformer2"),
        (Network("smp:losses"), "segmentation_models_pytorch has no network losses"),
        (Network("smp:Unet", "resnet999"), "network: smp:Unet: .*resnet999"),
        (Network("smp:Unet", "tu-resnet10t", "", {"wide": 3}), "network: smp:Unet: .*wide"),
    ],
)
def test_invalid_network(settings: Network, words: str) -> None:
    oracles.whole_smp()
    with pytest.raises(RecipeError, match=words) as refusal:
        networks.build(settings, 5)
    assert "\n" not in str(refusal.value)


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    words = r"^network\.name: smp: needs pip install segmentation-models-pytorch"
    with pytest.raises(RecipeError, match=words):
        networks.build(Network("smp:Unet"), 5)
