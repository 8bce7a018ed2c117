#!/usr/bin/env bash
# The set of measurements for one GPU, within 9 minutes: ./benchmarks/gpu.sh
# Results go to $OUT, or to benchmarks/results/gpu. A part that fails or runs out of time does not stop the others.
# PYTHON: the interpreter to use. Needs torch with CUDA, transformers, rich, and 24 GB of GPU memory.
set -u
cd "$(dirname "$0")/.." || exit
out=${OUT:-benchmarks/results/gpu}
python=${PYTHON:-python}
export PYTHONPATH=.:LLaVA:LLaVA-Next:Qwen2-VL${PYTHONPATH:+:$PYTHONPATH} HF_HUB_OFFLINE=1
mkdir -p "$out"
start=$SECONDS
failed=0

# part NAME ALLOWED_SECONDS FLAGS...: what is left of the 9 minutes is the limit where that is less.
part() {
    local name=$1 allowed=$2 left=$((540 - SECONDS + start))
    shift 2
    if ((left < 20)); then
        echo "== $name: no time left" >&2
        failed=1
        return
    fi
    timeout $((allowed < left ? allowed : left)) \
        "$python" benchmarks/bench.py --device cuda --json "$out/$name.json" "$@" >"$out/$name.txt" 2>"$out/$name.log"
    local code=$?
    echo "== $name: exit $code after $((SECONDS - start)) s in all"
    # All but the line of JSON, which is in the file.
    if ((code)); then tail -n 3 "$out/$name.log" >&2; failed=1; else sed '$d' "$out/$name.txt"; fi
}

part agreement 60 --agreement
part selection 50 --selection --repeats 5
part growth 50 --growth --repeats 5
part llava-next-7b 150 --shape llava-next-7b --dtype bfloat16 --batch 1 --K 320 160 --methods mob --repeats 7 --new-tokens 32
part llava-1.5-7b 110 --shape llava-1.5-7b --dtype bfloat16 --batch 1 --K 64 192 --methods mob --repeats 7 --new-tokens 32
part llava-1.5-7b-batches 110 --shape llava-1.5-7b --dtype bfloat16 --sweep batch --K 64 --repeats 3 --new-tokens 8
exit $failed
