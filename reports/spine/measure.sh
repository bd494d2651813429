#!/usr/bin/env bash
# Measures the figures of reports/spine/README.md on one CUDA card with at least 16 GiB.
#
#   reports/spine/measure.sh OUT [448] [1288] [real DATASET]
#
# 448 and 1288: plan the full-size model (random weights) for a V100's 14 GiB, one image, rank 16, 256 text tokens.
# real: plan and train 200 steps on a dataset (made from a video clip by tests/data/clips.py).
set -euo pipefail
out=$1
shift
mkdir -p "$out"
export BUDGETFT_CACHE="$out/cache"
budgetft() { python3 -m budgetft "$@"; }
while [ $# -gt 0 ]; do
    case $1 in
    448 | 1288)
        size=$([ "$1" = 448 ] && echo 448x448 || echo 1288x728)
        time budgetft plan --gpu v100-16g --image "$size" --text-tokens 256 --supervised-tokens 160 --rank 16 \
            --effective-batch 32 --probe always --max-probes 20 --out "$out/plan-$1.json" 2>&1 | tee "$out/plan-$1.txt"
        ;;
    real)
        shift
        time budgetft plan --gpu v100-16g --data "$1" --effective-batch 8 --probe always --max-probes 12 \
            --out "$out/plan-real.json" 2>&1 | tee "$out/plan-real.txt"
        time budgetft train --plan "$out/plan-real.json" --out "$out/run" --weights random --steps 200 --save-every 100 \
            2>&1 | tee "$out/train-real.txt"
        cp "$out/run/summary.json" "$out/summary-real.json"
        cp "$out/run/log.jsonl" "$out/log-real.jsonl"
        rm -rf "$out/run"
        ;;
    esac
    shift
done
cp "$out/cache/ledger.sqlite3" "$out/ledger.sqlite3"
cp "$out/cache/studies.sqlite3" "$out/studies.sqlite3"
rm -rf "$out/cache"
