"""No file that a model is read from runs anything, whatever it is called and whoever has consented to what."""

import contextlib
import pickle
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backend.catalog import Model, Roots, fingerprint
from backend.consents import PICKLES, Consents
from backend.diffusion import reading
from backend.diffusion.reading.errors import Unreadable
from backend.diffusion.reading.sources import source
from backend.errors import ModelBroken
from extensions.controlnet import annotators, nets
from extensions.lora import header
from extensions.lora.shelf import Shelf
from tests import pickles

KINDS = 20
"""At least so many ways there should be."""


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    return tmp_path / "executed"


def test_the_pickles_would_do_what_they_are_for(mark: Path, tmp_path: Path) -> None:
    """Else the other tests show nothing."""
    idle = []
    attacks = pickles.attacks(mark, tmp_path)
    for name, attack in attacks.items():
        content = attack if isinstance(attack, pickles.Raw) else pickle.dumps(attack, 2)
        with contextlib.suppress(Exception):
            pickle.loads(content)
        for _ in range(50 * (not mark.exists())):
            time.sleep(0.02)
            if mark.exists():
                break
        if not mark.exists():
            idle.append(name)
        elif mark.is_dir():
            mark.rmdir()
        else:
            mark.unlink()
    assert not idle
    assert len(attacks) >= KINDS


@pytest.mark.parametrize("consented", [False, True], ids=["refused", "consented"])
@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
def test_no_checkpoint_and_no_vae_runs_anything(ending: str, consented: bool, mark: Path, tmp_path: Path) -> None:
    for number, (name, content) in enumerate(pickles.files(mark, tmp_path)):
        file = tmp_path / f"{number}{ending}"
        file.write_bytes(content)
        digests = frozenset({fingerprint(file)} if consented else ())
        model = Model(name="evil", path=file, title="evil", family="sd1", consented=digests)
        family = reading.family_of(model)
        with pytest.raises(ModelBroken, match=r"^the model evil cannot be loaded: "):
            reading.parts(model, family, dict.fromkeys(family.parts, torch.float32))
        with pytest.raises(ModelBroken):
            reading.vae(
                Model(name="innocent", path=tmp_path / "none", title="innocent", family="sd1", consented=digests), file
            )
        assert not mark.exists(), name


def test_every_ending_of_a_pickle_is_known_as_one(mark: Path, tmp_path: Path) -> None:
    content = pickle.dumps(pickles.attacks(mark, tmp_path)["os.system"])
    for ending in (*PICKLES, *(ending.upper() for ending in PICKLES)):
        (tmp_path / f"evil{ending}").write_bytes(content)
        with pytest.raises(ModelBroken, match="can carry a program"):
            reading.vae(
                Model(name="innocent", path=tmp_path / "none", title="innocent", family="sd1"),
                tmp_path / f"evil{ending}",
            )
    assert not mark.exists()


def test_no_lora_and_no_control_model_runs_anything(mark: Path, tmp_path: Path) -> None:
    loras = tmp_path / "loras"
    loras.mkdir()
    for number, (name, content) in enumerate(pickles.files(mark, tmp_path)):
        for ending in (".pt", ".safetensors"):
            file = loras / f"{number}{ending}"
            file.write_bytes(content)
            assert header.facts(file).problem
            with pytest.raises(nets.Unfit):
                nets.read(file, {})
            with contextlib.suppress(annotators._Unusable):
                annotators.read_weights(file)
            assert not mark.exists(), name
    look = Shelf(Roots(tmp_path), tmp_path / "kept").look()
    assert all(file.facts.problem for file in look.files.values())
    assert not mark.exists()


def test_consent_is_for_one_file_as_it_is(tmp_path: Path) -> None:
    consents = Consents(tmp_path / "data" / "consents.json")
    first, second = tmp_path / "first.ckpt", tmp_path / "second.ckpt"
    first.write_bytes(b"one")
    second.write_bytes(b"two")
    digest = consents.give(first, "ada")
    larger = tmp_path / "larger.ckpt"
    larger.write_bytes(b"three")
    read: list[Path] = []
    assert not consents.is_given(larger, lambda path: str(read.append(path)))
    assert not read  # a folder of checkpoints is not hashed for the consent to one
    assert not consents.is_given(tmp_path / "gone.ckpt")
    assert consents.is_given(first)
    assert not consents.is_given(second)
    first.write_bytes(b"another")
    assert not consents.is_given(first)
    consents.withdraw(digest)
    assert consents.given() == frozenset()


@pytest.mark.parametrize("legacy", [False, True])
def test_weights_in_a_pickle_are_read_once_somebody_has_consented(legacy: bool, tmp_path: Path) -> None:
    weights = {"decoder.conv_in.weight": torch.rand(2, 3)}
    file = tmp_path / "weights.ckpt"
    torch.save({"state_dict": weights, "epoch": 3}, file, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(Unreadable, match="an administrator has consented"):
        source(file)
    given = source(file, {fingerprint(file)})
    with given.open() as tensors:
        assert torch.equal(tensors.get_tensor("decoder.conv_in.weight"), weights["decoder.conv_in.weight"])
    save_file(weights, tmp_path / "same.safetensors")
    assert given.shapes == source(tmp_path / "same.safetensors").shapes
