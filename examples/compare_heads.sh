#!/bin/sh
# Aggregation heads on full HR tiles beside LRMIL at 5x, as the paper's Table 1, on your own cohort.
#
#   examples/compare_heads.sh slides.csv ENCODER OUT
#
# HR tiles are encoded once for all heads; all use the same folds. Writes OUT/heads.md and OUT/heads/evaluation.html.
set -eu
here=$(dirname "$0")
. "$here/prepare.sh"
set --
for head in maxpool meanpool abmil clam_mb clam_sb dsmil transmil dtfd; do
    lrmil train-teacher "$slides" --tiles "$out/tiles-hr" --encoder "$encoder" --features "$out/features-hr" --head "$head" $heads \
        -o "$out/teacher-$head"
    set -- "$@" "$head=$out/teacher-$head"
done
distilled lrmil --preset lrmil
lrmil evaluate "$@" lrmil="$out/lrmil.safetensors" -o "$out/heads" -q --overwrite
python3 "$here/paper_table.py" heads "$out/heads/metrics.csv" "$out/lrmil.receipt.json" > "$out/heads.md"
cat "$out/heads.md"
