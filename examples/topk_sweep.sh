#!/bin/sh
# How much the k of the hard attention loss (equation 5) matters, on your own cohort.
#
#   examples/topk_sweep.sh slides.csv ENCODER OUT
#
# Writes OUT/topk.md and OUT/topk/evaluation.html. Shares its folder with ablation.sh.
set -eu
here=$(dirname "$0")
. "$here/prepare.sh"
set --
for k in 1 2 4 8 16; do
    distilled "k$k" --preset lrmil --k "$k"
    set -- "$@" "k$k=$out/k$k.safetensors"
done
lrmil evaluate "$@" -o "$out/topk" -q --overwrite
python3 "$here/paper_table.py" topk "$out/topk/metrics.csv" > "$out/topk.md"
cat "$out/topk.md"
