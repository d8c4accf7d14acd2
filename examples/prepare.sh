# Sourced by the scripts beside it: tiles, pairs, a teacher, and one LR encoder a fold.
# What is up to date is left alone, so all of them can share a folder.
#
#   . prepare.sh slides.csv ENCODER OUT      with, from the environment:
#   TILE_PX   tile side in px (256)
#   STAGE1    options of distill-encoder, such as "--epochs 10 --lr 5e-5"
#   HEADS     options of train-teacher and distill-student, such as "--lr 1e-3 --epochs 100"
slides=$1 encoder=$2 out=$3
px="--tile-px ${TILE_PX:-256}"
heads=${HEADS:-}
mkdir -p "$out"
lrmil tile "$slides" --mpp 2.0 $px -o "$out/tiles-lr" -q
lrmil tile "$slides" --mpp 0.5 $px -o "$out/tiles-hr" -q
lrmil match "$out/tiles-lr" "$out/tiles-hr" -o "$out/pairs" -q
lrmil train-teacher "$slides" --tiles "$out/tiles-hr" --encoder "$encoder" --features "$out/features-hr" $heads -o "$out/teacher-abmil"
folds=$(lrmil info "$out/teacher-abmil" --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["folds"])')
# stage1 NAME OPTIONS...: an LR encoder a fold, OUT/NAME.fold<k>.safetensors
stage1() {
    name=$1
    shift
    for k in $(seq "$folds"); do
        lrmil distill-encoder "$out/pairs" --slides "$slides" --teacher "$out/teacher-abmil" --fold "$k" --encoder "$encoder" \
            --cache "$out/cache" ${STAGE1:-} "$@" -o "$out/$name.fold{fold}.safetensors"
    done
}
stage1 lr-encoder
to=$out # where models are written
# student NAME OPTIONS...: a student of the ABMIL teacher, from cached LR features
student() {
    name=$1
    shift
    lrmil distill-student "$slides" --tiles "$out/tiles-lr" --pairs "$out/pairs" --teacher "$out/teacher-abmil" \
        --features "$out/features-hr" --no-onnx $heads "$@" -o "$to/$name.safetensors"
}
# distilled NAME OPTIONS...: the same with the distilled encoder of each fold; the LR-only student is trained only once, elsewhere
distilled() {
    name=$1
    shift
    student "$name" --encoder "$out/lr-encoder.fold{fold}.safetensors" --lr-features "$out/features-lr" --no-baseline "$@"
}
