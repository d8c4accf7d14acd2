# Sourced after prepare.sh by compare_methods.sh and frontier.sh: every method, on the same slides, tiles, folds and HR features.
# From the environment:
#   DMIN      options of the DMIN teacher's training, such as "--epochs 60 --lr 3e-4"
#   SCREEN    options of AHDMIL's and HDMIL's second step, such as "--epochs 20 --screen-px 32"
#   EAGLE     options of EAGLE's training, such as "--top 50"
#   ZOOM      options of ZoomMIL's training, such as "--lr 1e-4 --head-option k=4"
lrmil train-teacher "$slides" --tiles "$out/tiles-hr" --encoder "$encoder" --features "$out/features-hr" --head dmin ${DMIN:-} \
    -o "$out/teacher-dmin"
# full_hr OPTIONS...: ABMIL on all HR tiles, as a model that predict can run
full_hr() {
    lrmil distill-student "$slides" --tiles "$out/tiles-hr" --encoder "$encoder" --teacher "$out/teacher-abmil" --preset lr-only \
        --lr-features "$out/features-hr" --no-onnx $heads "$@" -o "$to/full-hr.safetensors"
}
# lr_only NAME ENCODER OPTIONS...: an LR student that nobody taught
lr_only() {
    name=$1 own=$2
    shift 2
    student "$name" --preset lr-only --encoder "$own" --lr-features "$out/features-lr/$name" "$@"
}
# eagle OPTIONS...: the tiles that LRMIL picks
eagle() {
    selective eagle "$out/teacher-abmil" --picker "$to/lrmil.safetensors" --lr-features "$out/features-lr" ${EAGLE:-} "$@"
}
# methods OPTIONS...: full HR, LRMIL and all that read some HR tiles
methods() {
    full_hr "$@"
    distilled lrmil --preset lrmil "$@"
    for name in ahdmil hdmil; do
        selective "$name" "$out/teacher-dmin" ${SCREEN:-} "$@"
    done
    selective zoommil "$out/teacher-abmil" --lr-features "$out/features-lr/lr-only" ${ZOOM:-} "$@"
    eagle "$@"
}
# selective METHOD TEACHER OPTIONS...
selective() {
    method=$1 teacher=$2
    shift 2
    lrmil distill-student "$slides" --method "$method" --teacher "$teacher" --tiles "$out/tiles-lr" --pairs "$out/pairs" \
        --features "$out/features-hr" --encoder "$encoder" "$@" -o "$to/$method.safetensors"
}
