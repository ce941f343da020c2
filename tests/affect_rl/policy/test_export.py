"""Exported policies: others load them and get the same log-probs, and they name nothing of this machine."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor

from affect_rl.errors import AffectError
from affect_rl.policy.adapters import TEAM, Lora
from affect_rl.policy.batches import TokenBatch
from affect_rl.policy.export import Exported, Form, export_policy
from affect_rl.policy.fusion import collate_percepts
from affect_rl.policy.model import AffectPolicy
from affect_rl.policy.tokens import pretrained_language_model
from affect_rl.policy.transfer import FileTransfer
from affect_rl.trajectory import Percept
from benchmarks.workload import AUDIO_DIM, VIDEO_DIM, tiny_policy

AGENTS = ("planner", "filter")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run's policies, made of a local language model: plain ones in two types, and adapters on these."""
    run = tmp_path_factory.mktemp("here") / "runs" / "mine"
    made = tiny_policy(dim=64)
    made.language_model.save_pretrained(run / "language-model")
    made.tokenizer.save_pretrained(run / "language-model")
    for dtype in (torch.float32, torch.bfloat16):
        language_model, tokenizer = pretrained_language_model(str(run / "language-model"), dtype)
        policy = AffectPolicy.create(
            language_model, tokenizer, audio_dim=AUDIO_DIM, video_dim=VIDEO_DIM, dim=16, heads=2, soft_tokens=2,
            experts=4, top_k=2,
        )  # fmt: skip
        name = str(dtype).removeprefix("torch.")
        base = policy.save(run / f"sft-{name}")
        adapted(base, (TEAM,)).save(run / f"team-{name}")
        adapted(base, AGENTS).save(run / f"agents-{name}")
    return run


@torch.no_grad()
def adapted(base: Path, names: tuple[str, ...]) -> AffectPolicy:
    torch.manual_seed(0)
    policy = AffectPolicy.load(base)
    policy.add_adapters(Lora(rank=4, alpha=10), names)
    for adapter in policy.adapters():
        for tensor in adapter.tensors.values():
            tensor.add_(torch.randn(tensor.shape) * 0.05)
    return policy


@torch.no_grad()
def logprobs(directory: Path, adapter: str | None = None) -> Tensor:
    """Of six answer tokens in each of two rows, behind a percept."""
    policy = AffectPolicy.load(directory).eval()
    ids = torch.arange(3, 27).reshape(2, 12)
    ids[:, 1 : 1 + policy.fusion.shape.tokens] = policy.config.percept_token_id
    mask = torch.zeros_like(ids, dtype=torch.bool)
    mask[:, 6:] = True
    features = [torch.randn(3, width, generator=torch.Generator().manual_seed(1)) for width in (AUDIO_DIM, VIDEO_DIM)]
    percepts = [Percept(*(f.numpy() for f in features))] * 2
    with policy.use_adapter(adapter):
        return policy(TokenBatch(ids, mask, collate_percepts(percepts, AUDIO_DIM, VIDEO_DIM))).logprobs


def exported(source: Path, out: Path, **form: object) -> Exported:
    out.mkdir(parents=True)
    return export_policy(source, out, Form(**form))  # type: ignore[arg-type]


def files(directory: Path) -> set[str]:
    return {str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file()}


@pytest.mark.parametrize("shard_size", ["", "50KB"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_as_it_is_it_gives_the_same_logprobs(run: Path, tmp_path: Path, dtype: str, shard_size: str) -> None:
    """A plain policy, and one with an adapter for each agent that carries its base along, far from where they were."""
    for source, adapters in ((f"sft-{dtype}", ()), (f"agents-{dtype}", AGENTS)):
        out = tmp_path / source
        found = exported(run / source, out, with_base=bool(adapters), shard_size=shard_size)
        assert found == Exported(adapters=tuple(sorted(adapters)))
        away = shutil.move(out, tmp_path / "elsewhere" / source)
        for adapter in adapters or (None,):
            assert torch.equal(logprobs(away, adapter), logprobs(run / source, adapter))
        assert all(not name.endswith((".bin", ".pt", ".pth", ".pkl")) for name in files(away))


@pytest.mark.parametrize(("dtype", "gap"), [("float32", 1e-5), ("bfloat16", 0.1)])
def test_merged_it_is_what_the_adapter_makes_up_to_rounding(run: Path, tmp_path: Path, dtype: str, gap: float) -> None:
    for source, adapter, asked in (("team", TEAM, ""), ("agents", "filter", "filter")):
        source = f"{source}-{dtype}"
        assert exported(run / source, tmp_path / source, merged=True, adapter=asked) == Exported(merged=adapter)
        merged = AffectPolicy.load(tmp_path / source)
        assert not merged.has_adapters and str(merged.config.dtype) == f"torch.{dtype}"
        before = logprobs(run / source, adapter)
        assert (logprobs(tmp_path / source) - before).abs().max() < gap
        assert (logprobs(run / f"sft-{dtype}") - before).abs().max() > 0.1, "adapters matter"
        own = AffectPolicy.load(run / source)
        own.merge(adapter)
        assert all(map(torch.equal, own.state_dict().values(), merged.state_dict().values()))


def test_without_its_base_it_says_what_it_needs(run: Path, tmp_path: Path) -> None:
    """And finds it beside itself."""
    found = exported(run / "team-float32", tmp_path / "given" / "out")
    assert found == Exported(adapters=(TEAM,), needs="sft-float32")
    with pytest.raises(AffectError, match=r"stand on the policy sft-float32, which is not there; .* under one folder"):
        AffectPolicy.load(tmp_path / "given" / "out")
    shutil.copytree(run / "sft-float32", tmp_path / "given" / "sft-float32")
    assert torch.equal(logprobs(tmp_path / "given" / "out", TEAM), logprobs(run / "team-float32", TEAM))


@pytest.mark.parametrize(
    ("source", "form"),
    [("sft", {}), ("agents", {"with_base": True}), ("agents", {}), ("team", {"merged": True})],
)
def test_no_file_names_a_path_of_this_machine(run: Path, tmp_path: Path, source: str, form: dict[str, bool]) -> None:
    assert str(run) in (run / "sft-float32" / "config.json").read_text(), "there is something to take out"
    exported(run / f"{source}-float32", tmp_path / "out", **form)
    for file in (tmp_path / "out").rglob("*"):
        if file.is_file():
            assert str(run).encode() not in file.read_bytes(), file


def test_shards_are_what_the_hub_expects_and_engines_read(run: Path, tmp_path: Path) -> None:
    exported(run / "sft-float32", tmp_path / "out", shard_size="50KB")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    shards = set(index["weight_map"].values())
    assert len(shards) > 2
    assert {name for name in files(tmp_path / "out") if name.endswith(".safetensors")} == shards
    whole, cut = (FileTransfer(place) for place in (run / "sft-float32", tmp_path / "out"))
    assert {*whole.announcement(0).layout} == {*cut.announcement(0).layout}
    expected = dict(whole.receive(whole.announcement(0)))
    assert all(torch.equal(tensor, expected[name]) for name, tensor in cut.receive(cut.announcement(0)))
    fusion = AffectPolicy.load_fusion(tmp_path / "out").state_dict()
    assert all(torch.equal(t, fusion[n]) for n, t in AffectPolicy.load(run / "sft-float32").fusion.state_dict().items())


def test_an_export_can_be_exported(run: Path, tmp_path: Path) -> None:
    """Without what its owner put beside the policy's files."""
    exported(run / "agents-float32", tmp_path / "once", with_base=True, shard_size="50KB")
    (tmp_path / "once" / "README.md").write_text("A card.")
    exported(tmp_path / "once", tmp_path / "twice", with_base=True)
    assert files(tmp_path / "once") - files(tmp_path / "twice") == {"README.md"}
    assert torch.equal(logprobs(tmp_path / "twice", "planner"), logprobs(run / "agents-float32", "planner"))


@pytest.mark.parametrize(
    ("source", "form", "message"),
    [
        ("sft", {"merged": True}, "has no adapters, so it is whole; leave out --merged, --adapter and --with-base"),
        ("sft", {"with_base": True}, "has no adapters, so it is whole"),
        ("agents", {"merged": True}, "has the adapters filter, planner, and a merged directory holds what one of them"),
        ("agents", {"merged": True, "adapter": "critic"}, r"no such adapter \(it has: filter, planner\)"),
        ("agents", {"adapter": "filter"}, "says which one is merged; add --merged, or leave it out"),
        ("team", {"merged": True, "with_base": True}, "a merged policy needs no base"),
        ("team", {"shard_size": "5"}, "shard size '5': is none; give a number and its unit, such as 5GB"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Path, tmp_path: Path, source: str, form: dict[str, object], message: str
) -> None:
    with pytest.raises(AffectError, match=message):
        exported(run / f"{source}-float32", tmp_path / "out", **form)


def test_a_damaged_policy_is_not_exported(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run / "sft-float32", tmp_path / "policy")
    (tmp_path / "policy" / "model.safetensors").write_bytes(b"")
    with pytest.raises(AffectError, match="content does not match"):
        exported(tmp_path / "policy", tmp_path / "out")
