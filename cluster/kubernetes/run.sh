#!/usr/bin/env bash
# A whole run: warm start, training, evaluation. What is done is skipped, what was cut off is resumed. So one command
# begins a run and goes on with it, whatever has ended it.
#
#     run.sh RUN_DIR CONFIG [SETTING=VALUE ...]
set -euo pipefail

if (( $# < 2 )); then
    echo "usage: run.sh RUN_DIR CONFIG [SETTING=VALUE ...]" >&2
    exit 2
fi
run=$1
job=("$2" "runs_dir=$(dirname "$run")" "name=$(basename "$run")" "${@:3}")

if [[ ! -d $run/sft ]]; then
    affect-rl sft "${job[@]}" --resume # begins where there is no checkpoint
fi

if [[ ! -d $run/policy ]]; then
    if [[ -d $run/checkpoints ]]; then
        affect-rl train "${job[@]}" --resume
    else
        affect-rl train "${job[@]}"
    fi
fi

if [[ ! -d $run/policy ]]; then # stopped by a signal, with a checkpoint
    echo "$run: training is not done; the same command goes on with it" >&2
    exit 75 # EX_TEMPFAIL: what starts jobs may try again
fi

if [[ ! -f $run/evaluation/evaluation.json ]]; then
    affect-rl eval "${job[@]}"
fi
