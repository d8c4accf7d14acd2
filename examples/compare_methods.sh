#!/bin/sh
# Full HR, LRMIL, AHDMIL, HDMIL, ZoomMIL and EAGLE on one cohort: how good, how many HR tiles, how many seconds a slide.
#
#   examples/compare_methods.sh slides.csv ENCODER OUT
#
# The same slides, tiles, folds and HR features for all. Metrics are out-of-fold; tiles and seconds are those of `lrmil predict`
# from the pixels of the slides of TIME_ON (a manifest; default: all of slides.csv), each alone on the machine.
# From the environment, besides those of prepare.sh and methods.sh:
#   TIME_ON   manifest of the slides that are timed
# Writes OUT/methods.md and OUT/methods/evaluation.html. Run it again to go on where it stopped.
set -eu
here=$(dirname "$0")
. "$here/prepare.sh"
. "$here/methods.sh"
methods
set --
timed=
for method in full-hr lrmil ahdmil hdmil zoommil eagle; do
    lrmil predict "${TIME_ON:-$slides}" -m "$out/$method.safetensors" --runtime torch -o "$out/predicted/$method" -q
    set -- "$@" "$method=$out/$method.safetensors"
    timed="$timed $method=$out/predicted/$method"
done
lrmil evaluate "$@" -o "$out/methods" -q --overwrite
python3 "$here/paper_table.py" methods "$out/methods/metrics.csv" $timed > "$out/methods.md"
cat "$out/methods.md"
