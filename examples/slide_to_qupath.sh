#!/usr/bin/env bash
# One slide, one model, one overlay for QuPath:  slide_to_qupath.sh SLIDE MODEL [OUT.geojson]
set -euo pipefail
slide=${1:?usage: slide_to_qupath.sh SLIDE MODEL [OUT.geojson]}
model=${2:?usage: slide_to_qupath.sh SLIDE MODEL [OUT.geojson]}
name=$(basename "$slide")
lrmil predict "$slide" --model "$model" -o - | lrmil export-geojson - -o "${3:-${name%.*}.heatmap.geojson}"
