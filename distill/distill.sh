#!/usr/bin/env bash
# The whole recipe of models/avatar-edit/adapters/few-step, one GPU: guidance into one row, 36 steps into 12, then 12 into
# 3 for each student, and the student's own walk. The first two stages train all weights, since nobody serves what they
# give; the students are of low rank, and, to compare with, one has weights of its own. Students train side by side: one
# alone does not fill a GPU. Every stage goes on from its checkpoint, so a run that was cut off is started again as it was.
#
# usage: distill/distill.sh MODEL RUN [MINUTES]     MINUTES: of each stage; default: those of the settings
# environment:
#   RANKS    of the students; 0 has weights of its own        (default: "16 0")
#   CONFIG   settings file
#   PAIRS    folder with metadata.jsonl                       (default: rendered pairs)
#   STEPS    from the teacher by way of the middle to the student (default: "36 12 3")
#   OPTIONS  more options for every stage, as "--device cpu --max-steps 2"
# A real checkpoint: PAIRS=my-pairs CONFIG=distill/configs/checkpoint.toml RANKS=64 distill/distill.sh instruct-pix2pix RUN
set -euo pipefail

model=$1
run=$2
minutes=${3:+--minutes $3}
read -r many middle few <<<"${STEPS:-36 12 3}"
root=$(cd "$(dirname "$0")/.." && pwd)
export PYTHONPATH="$root/distill:$root/engine_worker:$root/common:$root/kernels:$root/protos/python${PYTHONPATH:+:$PYTHONPATH}"

stage() { # NAME COMMAND ARGUMENTS…: into RUN/NAME, with the log beside it
  local name=$1
  shift
  # shellcheck disable=SC2086  # minutes and OPTIONS are lists of words
  "${PYTHON:-python3}" -m steploom_distill "$@" --model "$model" --out "$run/$name" \
    ${CONFIG:+--config "$CONFIG"} ${PAIRS:+--pairs "$PAIRS"} $minutes ${OPTIONS:-} >"$run/$name.log" 2>&1
}

student() { # RANK: in two stages
  local rank=$1 start=()
  if [ "$rank" = 0 ]; then start=(--init "$run/middle"); fi
  stage "steps-rank-$rank" distill-steps --teacher "$run/middle" "${start[@]}" --rank "$rank" --from "$middle" --to "$few"
  stage "rank-$rank" distill-rollout --teacher "$run/middle" --init "$run/steps-rank-$rank" --rank "$rank" \
    --from "$middle" --to "$few"
}

mkdir -p "$run"
stage guidance distill-guidance --rank 0
stage middle distill-steps --teacher "$run/guidance" --init "$run/guidance" --rank 0 --from "$many" --to "$middle"
students=()
for rank in ${RANKS:-16 0}; do
  student "$rank" &
  students+=($!)
done
for process in "${students[@]}"; do wait "$process"; done
echo "students: $(cd "$run" && ls -d rank-*/ | tr '\n' ' ')"
