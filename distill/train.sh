#!/usr/bin/env bash
# The whole recipe of models/avatar-edit, in the order that fills one GPU: autoencoder, then the teacher with the
# classifier beside it, then evaluation. Wall-clock minutes are fixed; see the model card for what they gave.
#
# usage: distill/train.sh RUN [VAE_MINUTES] [TEACHER_MINUTES] [CLASSIFIER_MINUTES]
# CONFIG names a settings file for the training stages, EVALUATE holds more options for the evaluation. The whole script
# in minutes on a CPU, for trying it:
#   CONFIG=distill/configs/tiny.toml EVALUATE="--count 1 --sweep-count 1 --steps 2" distill/train.sh /tmp/try 0.1 0.1 0.1
set -euo pipefail

run=$1
vae_minutes=${2:-6.5}
teacher_minutes=${3:-11.5}
classifier_minutes=${4:-1.5}
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root/distill:$root/engine_worker:$root/common:$root/protos/python${PYTHONPATH:+:$PYTHONPATH}"
settings=(${CONFIG:+--config "$CONFIG"})
step() { "${PYTHON:-python3}" -m steploom_distill "$@"; }
train() { step "$@" --run "$run" "${settings[@]}"; }

mkdir -p "$run"
train train-vae --minutes "$vae_minutes" >"$run/vae.log" 2>&1
train train-classifier --minutes "$classifier_minutes" >"$run/classifier.log" 2>&1 &
judge=$!
train train-teacher --minutes "$teacher_minutes" >"$run/teacher.log" 2>&1
wait "$judge"
step pack --run "$run" --out "$run/avatar-edit" --judge "$run/avatar-judge" >"$run/pack.log" 2>&1
step evaluate --model "$run/avatar-edit" --judge "$run/avatar-judge" --out "$run/evaluation" ${EVALUATE:-} \
  >"$run/evaluate.log" 2>&1
step pack --run "$run" --out "$run/avatar-edit" --judge "$run/avatar-judge" \
  --metrics "$run/evaluation/metrics.json" >>"$run/pack.log" 2>&1
step samples --model "$run/avatar-edit" --out "$run/images" >"$run/samples.log" 2>&1
echo "$run/avatar-edit: $(du -sh "$run/avatar-edit" | cut -f1), evaluated in $run/evaluation"
