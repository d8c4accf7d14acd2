#!/bin/sh
# What each loss term of LRMIL adds, on your own cohort: the rows of the paper's Table 3.
#
#   examples/ablation.sh slides.csv ENCODER OUT
#
# Writes OUT/ablation.md and OUT/ablation/evaluation.html. Run it again to go on where it stopped.
set -eu
here=$(dirname "$0")
. "$here/prepare.sh"
student lr-only --preset lr-only --encoder "$encoder" --lr-features "$out/features-lr/lr-only"
for preset in patch bag bag-soft bag-hard lrmil; do
    distilled "$preset" --preset "$preset"
done
lrmil evaluate lr-only="$out/lr-only.safetensors" patch="$out/patch.safetensors" bag="$out/bag.safetensors" \
    bag-soft="$out/bag-soft.safetensors" bag-hard="$out/bag-hard.safetensors" lrmil="$out/lrmil.safetensors" \
    teacher="$out/teacher-abmil" -o "$out/ablation" -q --overwrite
python3 "$here/paper_table.py" ablation "$out/ablation/metrics.csv" > "$out/ablation.md"
cat "$out/ablation.md"
