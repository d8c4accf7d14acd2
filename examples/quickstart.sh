#!/usr/bin/env bash
# The LRMIL chain on your own slides. Edit the variables, run it, run it again after a break: what is done is kept.
set -euo pipefail

slides=slides.csv                # your manifest: columns slide,label (see examples/slides.csv)
encoder=hf-hub:MahmoodLab/UNI    # or a timm name, or NAME@weights.safetensors for weights on disk
out=lrmil-out                    # where everything goes
folds=5

# Tiles at 5x and at 20x, and which 20x tiles lie in which 5x tile.
lrmil tile "$slides" --mpp 2.0 -o "$out/tiles-lr" --thumbnail
lrmil tile "$slides" --mpp 0.5 -o "$out/tiles-hr"
lrmil match "$out/tiles-lr" "$out/tiles-hr" -o "$out/pairs"

# The 20x teacher. Its features are kept in $out/teacher/features.
lrmil train-teacher "$slides" --tiles "$out/tiles-hr" --encoder "$encoder" --folds "$folds" -o "$out/teacher"

# The 5x encoder, one a fold, so that no encoder has seen the pixels of its test slides.
for fold in $(seq "$folds"); do
    lrmil distill-encoder "$out/pairs" --slides "$slides" --teacher "$out/teacher" --fold "$fold" \
        --encoder "$encoder" --cache "$out/targets" -o "$out/lr-encoder.fold{fold}.safetensors"
done

# The 5x student: one model file.
lrmil distill-student "$slides" --tiles "$out/tiles-lr" --pairs "$out/pairs" --teacher "$out/teacher" \
    --encoder "$out/lr-encoder.fold{fold}.safetensors" -o "$out/model.safetensors"

# What the model says of each slide, and where it looked (drop the .geojson.gz on the slide in QuPath).
lrmil predict "$slides" --model "$out/model.safetensors" -o "$out/predictions" \
    --geojson "$out/predictions" --overlay "$out/predictions"
