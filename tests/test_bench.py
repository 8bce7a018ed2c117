"""``benchmarks/bench.py`` on tiny sizes: what it measures, says and refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import bench  # noqa: E402
import bench_agreement  # noqa: E402
import bench_model  # noqa: E402
import bench_selection  # noqa: E402
import bench_shapes  # noqa: E402
from bench_timing import Watch, exponent, ratios, summary  # noqa: E402

CPU = Watch(torch.device("cpu"))
TINY = ["--shape", "scenes", "--device", "cpu", "--text", "8", "--repeats", "1", "--new-tokens", "3"]


def run(capsys, *words: str) -> tuple[str, dict]:
    """What a run prints, and the JSON of its last line."""
    assert bench.main(list(words)) == 0
    text = capsys.readouterr().out
    return text, json.loads(text.strip().splitlines()[-1])


def test_last_line_is_the_result(capsys, tmp_path):
    file = tmp_path / "new" / "result.json"
    text, result = run(capsys, *TINY, "--K", "24", "0.5", "--json", str(file))
    assert "24 of 196" in text and "98 of 196" in text
    assert json.loads(file.read_text()) == result
    assert result["kind"] == "model" and result["setup"]["shape"] == "scenes"
    assert {"command", "commit", "versions", "threads", "device"} <= result["provenance"].keys()
    whole, small, half = result["rows"]
    assert (whole["method"], whole["K"], small["K"], half["K"]) == ("none", 196, 24, 98)
    assert whole["text"] == 8 and whole["prefill_ms"]["n"] == 2  # one beside each pruned setting
    for row in result["rows"]:
        assert row["prefill_ms"]["median"] > 0 and row["per_token_ms"]["median"] > 0
        assert row["first_token_ms"]["median"] > whole["encoder_ms"]["low"] / 2
        assert row["kv_bytes"] == row["kv_bytes_predicted"]
        assert row["peak_bytes"] > 2**20 or sys.platform != "linux"
    assert small["pruner_ms"]["median"] > 0


def test_shares_are_measured_against_the_unpruned_run(capsys):
    _, result = run(capsys, *TINY, "--K", "24", "--batch", "2")
    whole, small = result["rows"]
    share = small["shares"]["prefill"]["median"]
    assert share == pytest.approx(small["prefill_ms"]["median"] / whole["prefill_ms"]["median"])  # of one pair
    assert small["ideal_prefill_share"] == pytest.approx(small["macs"] / whole["macs"])
    assert small["ideal_reached"] == pytest.approx((1 - share) / (1 - small["ideal_prefill_share"]))
    # Layers 0 and 1 of 6 hold all tokens: 8 text and 196 visual ones.
    assert small["kv_share"] == pytest.approx((2 * 204 + 4 * 32) / (6 * 204))
    assert small["mean_tokens"] == pytest.approx((2 * 196 + 4 * 24) / 6)


def test_kv_bytes_are_what_the_cache_holds():
    model = bench_shapes.build("scenes", None, CPU.device, torch.bfloat16, "sdpa")
    inputs = bench_shapes.sample(model.config, batch=3, pictures=2, text=10, dtype=torch.bfloat16)
    one = bench_model.Bench(model, inputs, CPU, 2)
    setting = bench_model.Setting("mob", 40, 3)
    with torch.inference_mode(), setting.active(model):
        measured = one.kv_bytes()
    assert (one.N, one.text) == (392, 10)
    assert measured == 3 * one.predicted(setting).kv_bytes == 3 * 2 * 160 * 2 * (3 * 402 + 3 * 50)


def test_prefill_runs_no_tower_and_keeps_nothing():
    model = bench_shapes.build("scenes", None, CPU.device, torch.float32, "sdpa")
    inputs = bench_shapes.sample(model.config, batch=1, pictures=1, text=8, dtype=torch.float32)
    with torch.inference_mode():
        one = bench_model.Bench(model, inputs, CPU, 2)
        before = dict(one.base.__dict__)
        ran = []
        handle = model.model.vision_tower.register_forward_hook(lambda *_: ran.append(1))
        setting = bench_model.Setting("mob", 24, 2)
        short = one.prefill().last_hidden_state
        with setting.active(model):
            pruned = one.prefill().last_hidden_state
        assert not ran
        with setting.active(model):
            expected = one.base(**bench_shapes.takes(one.base, one.inputs)).last_hidden_state
    handle.remove()
    assert len(ran) == 1
    assert torch.equal(pruned, expected) and not torch.equal(pruned, short)
    assert one.base.__dict__.keys() == before.keys()


def test_rules_before_the_decoder(capsys):
    pytest.importorskip("transformers", minversion="5.20")  # where generate takes encoded pictures
    _, result = run(capsys, *TINY, "--methods", "divprune", "--K", "24")
    row = result["rows"][1]
    assert row["layer"] == 0 and row["mean_tokens"] == 24
    assert row["kv_bytes"] == row["kv_bytes_predicted"]
    assert row["kv_share"] == pytest.approx(32 / 204)


def test_sweep_over_pictures(capsys, monkeypatch):
    monkeypatch.setattr(bench, "PICTURES", (1, 2))
    _, result = run(capsys, *TINY, "--sweep", "N", "--K", "0.1")
    assert [(row["N"], row["K"]) for row in result["rows"]] == [(196, 196), (196, 20), (392, 392), (392, 39)]


def test_profile(capsys):
    text, result = run(capsys, *TINY, "--profile", "--process-time")
    assert "aten::" in text and result["tables"].count("prefill, ") == 2


@pytest.mark.parametrize("batch", [1, 3])
def test_selection_is_compared_with_the_same_indices(batch):
    rows = bench_selection.compare(CPU, 2, sizes=((300, 5, 40),), width=1024, batch=batch)
    assert [row["data"] for row in rows] == ["random", "clustered"]
    for row in rows:
        assert row["identical"] and row["ms"]["gram"]["n"] == 2
        assert row["times_slower"].keys() == {"gram", "rows"}
    assert bench.selection_table(rows).row_count == 2


AGREE = {"sizes": ((60, 4, 12),), "width": 32}


def test_agreement():
    rows = bench_agreement.agreement(CPU.device, **AGREE)
    assert len(rows) == len({(row["batch"], row["dtype"], row["data"]) for row in rows}) == 2 * 3 * 3
    for row in rows:
        assert row["identical"] and row["waits"] is None and not row["kernel"]
        assert row.get("differ_from_cpu") == (0 if row["batch"] == 1 else None)
    assert bench.agreement_table(rows).row_count == 18


def test_agreement_fails_where_tokens_differ(monkeypatch, capsys):
    """A kernel that takes the first tokens, whichever they are, on a path that asks for one."""
    farthest = bench_agreement.farthest

    def first(gram, taken, distance, K):
        return torch.zeros_like(taken).index_fill(1, torch.arange(K), True)

    def asked(units):
        return None if bench_agreement.os.environ.get("MOB_TRITON") == "0" else SimpleNamespace(steps=first)

    monkeypatch.setattr(farthest, "triton_kernel", asked)
    monkeypatch.setattr(bench_agreement.covering, "sample", farthest.on_accelerator)
    monkeypatch.setattr(bench, "agreement", lambda device: bench_agreement.agreement(device, **AGREE))
    assert bench.main(["--agreement", "--device", "cpu"]) == 1
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert not result["right"] and all(row["kernel"] for row in result["rows"])
    assert not any(
        row["identical"] for row in result["rows"] if row["data"] == "random"
    )  # few distinct: the first ones


def test_plain_ways_do_not_stay(monkeypatch):
    visual, prompt = bench_selection.tokens(100, 4, 64, True, CPU.device)
    before = bench_selection.covering.sample
    calls = bench_selection.ways(visual, prompt, 10)
    assert torch.equal(calls["gram"](), calls["rows"]())
    assert bench_selection.covering.sample is before


def test_exponents():
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    assert exponent([576, 2880, 23328], [n**1.5 / 7 for n in (576, 2880, 23328)]) == pytest.approx(1.5)
    for sizes, values in (([4, 4], [1, 2]), ([1, 2], [0, 1])):
        with pytest.raises(ValueError, match="two sizes"):
            exponent(sizes, values)
    points = [{"N": n, "ms": {"median": 5 * n}, "peak_bytes": 8 * n**2} for n in (576, 2880, 23328)]
    found = bench_selection.exponents("N", points)
    assert found["time_exponent"] == pytest.approx(1) == found["time_exponent_of_last_two"]
    assert found["memory_exponent"] == pytest.approx(2)


def test_growth():
    axes = {"K": [(120, 4, 10), (120, 4, 20), (120, 4, 40)]}
    (row,) = bench_selection.growth(CPU, 1, axes, width=64)
    assert [point["K"] for point in row["points"]] == [10, 20, 40]
    assert isinstance(row["time_exponent"], float)
    assert bench.growth_table([row]).row_count == 1


def test_summaries():
    assert summary([3, 1, 2, None]) == {"median": 2, "low": 1.5, "high": 2.5, "n": 3}
    assert summary([None]) is None and summary([4])["high"] == 4
    assert ratios([2, 9], [1, 3])["median"] == 2.5


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--shape", "llava-next-7b", "--device", "cpu"], "--device cuda"),
        (["--shape", "scenes", "--device", "cpu", "--methods", "mobb"], "--methods mobb"),
        (["--shape", "scenes", "--device", "cpu", "--new-tokens", "1"], "--new-tokens 2"),
        (["--shape", "scenes", "--device", "cpu", "--text", "1"], "--text 1"),
        (["--shape", "scenes", "--device", "cpu", "--layer", "6"], "layers 1 to 5"),
        (["--model-path", "/nowhere", "--device", "cpu"], "/nowhere"),
    ],
)
def test_refuses_in_one_line(capsys, words, said):
    with pytest.raises(SystemExit) as stopped:
        bench.main(words)
    assert stopped.value.code == 2
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert "error: " in last and said in last


def test_refuses_a_missing_gpu(capsys):
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(SystemExit):
        bench.main(["--shape", "llava-1.5-7b", "--device", "cuda"])
    assert "sees no GPU" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, shape in bench_shapes.SHAPES.items() if shape.config])
def test_shapes_have_the_tokens_of_the_paper(name):
    """One picture of each family, without a model: placeholders only."""
    expected = {
        "llava-1.5-7b": 576,
        "llava-next-7b": 2880 + 48,
        "qwen2-vl-7b": 1156,
        "video-llava-7b": 2056,
        "mid": 576,
    }
    config = bench_shapes.SHAPES[name].config()
    inputs = bench_shapes.sample(config, batch=1, pictures=1, text=64, dtype=torch.float32)
    assert bench_shapes.visual_count(config, inputs["input_ids"]) == expected[name]
    text = inputs["input_ids"].shape[1] - expected[name]
    assert text == 64 + 2 * (config.model_type == "qwen2_vl")  # and the marks around a picture


def test_gpu_script_asks_for_what_there_is():
    script = (ROOT / "benchmarks/gpu.sh").read_text()
    assert subprocess.run(["bash", "-n", ROOT / "benchmarks/gpu.sh"]).returncode == 0
    for line in script.splitlines():
        if line.startswith("part "):
            bench.flags().parse_args(line.split()[3:])
