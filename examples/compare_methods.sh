#!/bin/sh
# Full HR, LRMIL, AHDMIL, HDMIL, ZoomMIL and EAGLE on one cohort: how good, how many HR tiles, how many seconds a slide.
#
#   examples/compare_methods.sh slides.csv ENCODER OUT
#
# The same slides, tiles, folds and HR features for all. Metrics are out-of-fold; tiles and seconds are those of `lrmil predict`
# from the pixels of the slides of TIME_ON (a manifest; default: all of slides.csv), each alone on the machine.
# From the environment, besides those of prepare.sh:
#   TIME_ON   manifest of the slides that are timed
#   DMIN      options of the DMIN teacher's training, such as "--epochs 60 --lr 3e-4"
#   SCREEN    options of AHDMIL's and HDMIL's second step, such as "--epochs 20 --screen-px 32"
#   EAGLE     options of EAGLE's training, such as "--top 50"
#   ZOOM      options of ZoomMIL's training, such as "--lr 1e-4 --head-option k=4"
# Writes OUT/methods.md and OUT/methods/evaluation.html. Run it again to go on where it stopped.
set -eu
here=$(dirname "$0")
. "$here/prepare.sh"
# ABMIL on all HR tiles, as a model that predict can run
lrmil distill-student "$slides" --tiles "$out/tiles-hr" --encoder "$encoder" --teacher "$out/teacher-abmil" --preset lr-only \
    --lr-features "$out/features-hr" $heads -o "$out/full-hr.safetensors"
distilled lrmil --preset lrmil
lrmil train-teacher "$slides" --tiles "$out/tiles-hr" --encoder "$encoder" --features "$out/features-hr" --head dmin ${DMIN:-} \
    -o "$out/teacher-dmin"
common="--tiles $out/tiles-lr --pairs $out/pairs --features $out/features-hr --encoder $encoder"
for method in ahdmil hdmil; do
    lrmil distill-student "$slides" --method "$method" --teacher "$out/teacher-dmin" $common ${SCREEN:-} -o "$out/$method.safetensors"
done
lrmil distill-student "$slides" --method zoommil --teacher "$out/teacher-abmil" $common --lr-features "$out/features-lr/lr-only" ${ZOOM:-} \
    -o "$out/zoommil.safetensors"
lrmil distill-student "$slides" --method eagle --picker "$out/lrmil.safetensors" --teacher "$out/teacher-abmil" $common --lr-features "$out/features-lr" \
    ${EAGLE:-} -o "$out/eagle.safetensors"
set --
timed=
for method in full-hr lrmil ahdmil hdmil zoommil eagle; do
    lrmil predict "${TIME_ON:-$slides}" -m "$out/$method.safetensors" --runtime torch -o "$out/predicted/$method" -q
    set -- "$@" "$method=$out/$method.safetensors"
    timed="$timed $method=$out/predicted/$method"
done
lrmil evaluate "$@" -o "$out/methods" -q --overwrite
python3 "$here/paper_table.py" methods "$out/methods/metrics.csv" $timed | tee "$out/methods.md"
