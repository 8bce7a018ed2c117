#!/usr/bin/env bash
# The measurements that README.md and docs/performance.md show of a CPU: ./benchmarks/cpu.sh, then
# python benchmarks/make_tables.py. About 35 minutes of two cores with nothing else running.
# Results go to $OUT, or to benchmarks/results/cpu. PYTHON: the interpreter to use. Arguments: parts to run, or all.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
out=${OUT:-benchmarks/results/cpu}
python=${PYTHON:-.venv/bin/python}
mkdir -p "$out"
failed=0
wanted=" $* "

# part NAME THREADS FLAGS...
part() {
    local name=$1 threads=$2
    shift 2
    [[ $wanted == "  " || $wanted == *" $name "* ]] || return 0
    OMP_NUM_THREADS=$threads "$python" benchmarks/bench.py --device cpu --json "$out/$name.json" "$@" | sed '$d' || failed=1
}

part mid 1 --shape mid --K 32 64 128 192 288 --repeats 7 --new-tokens 4
part mid-2-threads 2 --shape mid --K 64 192 --repeats 7 --new-tokens 8
part selection 2 --selection --repeats 5
part selection-8 2 --selection --batch 8 --repeats 3
part growth 2 --growth --repeats 5
part batch 2 --shape mid --sweep batch --K 64 --repeats 3 --new-tokens 4
part pictures 2 --shape mid --sweep N --K 64 --repeats 3 --new-tokens 4
part scenes 2 --shape scenes --K 24 --repeats 15 --new-tokens 4
part llava-1.5-7b 2 --shape llava-1.5-7b --layers 8 --K 64 --repeats 3 --new-tokens 2
exit $failed
