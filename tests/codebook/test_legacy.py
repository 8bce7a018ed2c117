"""Codebooks of the original release, and what else a pickle could carry."""

from __future__ import annotations

import io
import json
import pickle

import pytest
import torch

import zoo
from codebook import books
from redundancy_codebook.legacy import import_legacy
from redundancy_codebook.translate import EXPERIMENTS, OFF, PRUNING, translate

ROWS = zoo.noise(6, 48).half()


@pytest.mark.parametrize("device", ["cuda:0", "cuda:7", "cpu"])
def test_a_released_file_loads_on_a_machine_without_a_gpu(tmp_path, device):
    file = books.released(tmp_path / "numPrototypes-6.pt", ROWS, device)
    if device != "cpu" and not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match="CUDA"):  # which is how the released ones fail
            torch.load(file, weights_only=True)
    found = import_legacy(file)
    assert torch.equal(found.prototypes, ROWS) and not found.prototypes.requires_grad
    assert found.prototypes.device.type == "cpu" and found.metadata["projector_sha256"] is None
    assert found.metadata["imported"]["file"] == "numPrototypes-6.pt" and found.source_index is None


def test_ids_beside_the_file(tmp_path):
    file = books.released(tmp_path / "a.pt", ROWS)
    (tmp_path / "a.json").write_text(json.dumps(["9", "4", "9", "7", "4", "9"]))
    found = import_legacy(file)
    assert found.metadata["pictures"] == ["9", "4", "7"] and found.source_index.tolist() == [0, 1, 0, 2, 1, 0]
    for content in ('["1"]', "{}", "[1,2,3,4,5,6]", "no"):
        (tmp_path / "a.json").write_text(content)
        with pytest.raises(ValueError, match="JSON list of"):
            import_legacy(file)


def test_a_model_of_another_width_is_refused(tmp_path):
    file = books.released(tmp_path / "a.pt", ROWS)
    identity = {"D": 48, "model": "m", "projector_sha256": {"float16": "x"}}
    assert import_legacy(file, identity=identity).metadata["projector_sha256"] == {"float16": "x"}
    with pytest.raises(ValueError, match="belongs to another model"):
        import_legacy(file, identity=identity | {"D": 64})


class Payload:
    """What a hostile pickle does when it is loaded without care."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return (exec, (f"open({self.marker!r}, 'w').close()",))


def test_nothing_in_a_pickle_is_run(tmp_path):
    marker = tmp_path / "ran"
    plain, inside, bare = tmp_path / "plain.pt", tmp_path / "inside.pt", tmp_path / "bare.pt"
    torch.save(Payload(marker), plain)
    buffer = io.BytesIO()
    torch.save(ROWS, buffer)
    books.rewritten(inside, buffer, lambda pickled: pickle.dumps(Payload(marker), protocol=2))
    bare.write_bytes(pickle.dumps(Payload(marker)))
    for file in (plain, inside, bare):
        with pytest.raises(ValueError, match="one tensor in half precision"):
            import_legacy(file)
    assert not marker.exists()
    torch.load(plain, weights_only=False)  # the payload works: it was the importer that did not run it
    assert marker.exists()


@pytest.mark.parametrize(
    "value",
    [
        {"prototypes": ROWS},
        [ROWS],
        "text",
        torch.ones(5),
        torch.ones(2, 3, 4),
        torch.ones(2, 3, dtype=torch.int64),
        torch.ones(2, 3, dtype=torch.bool),
        torch.full((2, 3), float("inf")),
        torch.ones(0, 3),
        torch.zeros(2, 3),
        torch.ones(1, 3).expand(10**9, 3),
        torch.eye(3).to_sparse(),
        torch.ones(2, 3, dtype=torch.complex64),
    ],
    ids=lambda value: f"{type(value).__name__}-{tuple(getattr(value, 'shape', ()))}-{getattr(value, 'dtype', '')}",
)
def test_anything_but_a_matrix_of_numbers_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "a.pt")
    with pytest.raises(ValueError) as caught:
        import_legacy(tmp_path / "a.pt")
    assert "\n" not in str(caught.value)


def test_damaged_files(tmp_path):
    file = books.released(tmp_path / "a.pt", ROWS)
    content = file.read_bytes()
    for damaged in (b"", content[:200], content[:-100], b"\x80\x02." + content, b"text"):
        (tmp_path / "b.pt").write_bytes(damaged)
        with pytest.raises(ValueError):
            import_legacy(tmp_path / "b.pt")
    with pytest.raises(ValueError, match="there is no codebook"):
        import_legacy(tmp_path / "c.pt")


# ---------------------------------------------------------------------------------------------------------------
# Published settings


def published(mode, value=0.45, **more):
    return {"mm_vision_select_feature": mode, "toxic_codebook_flag": True, "toxic_codebook_thres": value, **more}


@pytest.mark.parametrize("mode", PRUNING)
@pytest.mark.filterwarnings("ignore:mm_vision_select_feature")
def test_modes_become_settings_that_mob_reads(mode):
    from mob import MoBConfig
    from mob.methods import create

    found = translate(published(mode), "c.safetensors")
    settings = MoBConfig.from_dict(found)
    rule = create(settings.method, settings.options)
    assert rule.path == "c.safetensors"
    if "fix_num" in mode or "smx" in mode:
        assert (rule.policy, settings.K) == ("ratio", 0.45)
        assert rule.variant == {"s": "single_softmax", "d": "double_softmax"}.get(
            mode.rpartition("patch_")[2][0], "cosine"
        )
    else:
        assert (rule.policy, rule.theta, settings.K) == ("threshold", 0.45, None)


def test_what_prunes_nothing_is_off():
    assert all(translate({"mm_vision_select_feature": mode}) == {} for mode in OFF) and translate({}) == {}
    assert translate(published("high_info_patch_fix_num", 1)) == {}


def test_experiments_and_baselines_are_refused():
    for mode in (*EXPERIMENTS, "fix_sim_something"):
        with pytest.raises(ValueError, match="redundancy_codebook measure"):
            translate(published(mode), "c.safetensors")
    for mode in ("random_patch", "low_sim_patch"):
        with pytest.raises(ValueError, match="baseline"):
            translate(published(mode), "c.safetensors")
    with pytest.raises(ValueError, match="did you mean 'high_info_patch'"):
        translate(published("hi_info_patch"), "c.safetensors")
    with pytest.raises(ValueError, match="leave-one-out"):
        translate(published("high_info_patch", pad_token_emb_flag=True), "c.safetensors")


def test_contradictions_are_refused():
    for change, message in (
        ({"toxic_codebook_flag": False}, "off"),
        ({"toxic_codebook_thres": 1.5}, "between 0 and 1"),
        ({"toxic_codebook_thres": "0.4"}, "between 0 and 1"),
        ({"mm_newline_position": "grid"}, "one_token"),
    ):
        with pytest.raises(ValueError, match=message):
            translate(published("high_info_patch") | change, "c.safetensors")
    with pytest.raises(ValueError, match="keep nothing"):
        translate(published("high_info_patch_fix_num", 0), "c.safetensors")


def test_a_path_in_a_config_is_not_used_unasked():
    config = published("high_info_patch", toxic_codebook_path="/home/someone/c.safetensors")
    with pytest.raises(ValueError, match="not used unasked"):
        translate(config)
    assert translate(config, trust_path=True)["options"]["path"] == "/home/someone/c.safetensors"
    assert translate(config, "own.safetensors")["options"]["path"] == "own.safetensors"
    with pytest.raises(ValueError, match="import-legacy"):
        translate(config | {"toxic_codebook_path": "c.pt"}, trust_path=True)
    with pytest.raises(ValueError, match="names no toxic_codebook_path"):
        translate(published("high_info_patch"))


def test_modes_that_differ_say_so():
    with pytest.warns(UserWarning, match="one frame"):
        translate(published("video_high_info_patch_double_smx"), "c.safetensors")
