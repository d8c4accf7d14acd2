#!/bin/sh
# How good is an answer for its seconds? Full HR, AHDMIL, HDMIL, ZoomMIL, EAGLE, LRMIL, LRMIL with a smaller student, and LR
# alone with either encoder, on one cohort: accuracy and AUC with intervals against seconds a slide, as a table and a picture.
#
#   examples/frontier.sh slides.csv ENCODER STUDENT OUT
#
# STUDENT is a smaller ViT, as distill-encoder --student takes it. The same slides, tiles, folds and HR features for all.
# From the environment, besides those of prepare.sh and methods.sh:
#   SEEDS     each method is trained so many times (3), from one pair of teachers and one stage 1 a fold
#   SMALL     how the small student starts, such as "--random-init"
#   SMALL_STAGE1  further options of its stage 1, such as "--epochs 20 --lr 5e-4": from scratch takes longer than from a copy
#   TIME_ON   manifest of the slides that are timed (all of slides.csv), each alone on the machine
#   DEVICE    where they are timed (cpu)
# Timed are `lrmil predict` and models of one LR encoder: those that are judged have one a fold, and take that many times as long.
# Writes OUT/frontier.png, .md and .csv. Run it again to go on where it stopped.
set -eu
here=$(dirname "$0")
small=$3
set -- "$1" "$2" "$4"
. "$here/prepare.sh"
stage1 small --student "$small" ${SMALL:-} ${SMALL_STAGE1:-}
. "$here/methods.sh"
for seed in $(seq "${SEEDS:-3}"); do
    to=$out/seed$seed
    mkdir -p "$to"
    methods --seed "$seed"
    student small --encoder "$out/small.fold{fold}.safetensors" --lr-features "$out/features-lr/small" --no-baseline --seed "$seed"
    lr_only lr-only "$encoder" --seed "$seed"
    lr_only lr-only-small "$small" --seed "$seed" ${SMALL:-}
done
to=$out/timed
mkdir -p "$to"
for name in lrmil small; do
    from=$name
    [ $name = small ] || from=lr-encoder
    student $name --encoder "$out/$from.fold1.safetensors" --lr-features "$out/features-lr/one-$name" --no-baseline --epochs 1
done
eagle --epochs 1 --lr-features "$out/features-lr/one-lrmil"
for name in full-hr ahdmil hdmil zoommil eagle lrmil small lr-only lr-only-small; do
    model=$to/$name.safetensors
    [ -e "$model" ] || model=$out/seed1/$name.safetensors
    lrmil predict "${TIME_ON:-$slides}" -m "$model" --runtime torch --device "${DEVICE:-cpu}" -o "$out/predicted/$name" -q
done
python3 "$here/frontier.py" "$out"
