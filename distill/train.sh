#!/usr/bin/env bash
# The whole recipe of models/avatar-edit, in the order that fills one GPU: autoencoder, then the teacher with the
# classifier beside it, then evaluation. Wall-clock minutes are fixed; see the model card for what they gave.
#
# usage: distill/train.sh RUN [VAE_MINUTES] [TEACHER_MINUTES]
set -euo pipefail

run=$1
vae_minutes=${2:-6.5}
teacher_minutes=${3:-11.5}
here=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$here${PYTHONPATH:+:$PYTHONPATH}"
step() { python3 -m steploom_distill "$@"; }

mkdir -p "$run"
step train-vae --run "$run" --minutes "$vae_minutes" >"$run/vae.log" 2>&1
step train-classifier --run "$run" >"$run/classifier.log" 2>&1 &
judge=$!
step train-teacher --run "$run" --minutes "$teacher_minutes" >"$run/teacher.log" 2>&1
wait "$judge"
step pack --run "$run" --out "$run/avatar-edit" --judge "$run/avatar-judge" >"$run/pack.log" 2>&1
step evaluate --model "$run/avatar-edit" --judge "$run/avatar-judge" --out "$run/evaluation" \
  >"$run/evaluate.log" 2>&1
step pack --run "$run" --out "$run/avatar-edit" --judge "$run/avatar-judge" \
  --metrics "$run/evaluation/metrics.json" >>"$run/pack.log" 2>&1
step samples --model "$run/avatar-edit" --out "$run/images" >"$run/samples.log" 2>&1
touch "$run/done"
