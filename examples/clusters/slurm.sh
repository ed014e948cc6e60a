#!/bin/bash
# A training run on one or more machines under SLURM, always submitted with the same command:
#
#     sbatch examples/clusters/slurm.sh examples/sd35-geneval.yaml
#
# It starts the run or continues it. Before the time limit, and when a job with a higher priority takes its place, SLURM sends
# a signal; dgpo saves its state, exits with 75, and the job is queued again. More arguments are options of `dgpo train`.
#
#SBATCH --job-name=dgpo
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=USR1@300
set -uo pipefail

run=${1:?"usage: sbatch slurm.sh RUN.yaml [options of dgpo train]"}
shift
machines=${SLURM_JOB_NUM_NODES:-1}
processes=${SLURM_GPUS_ON_NODE:-1}
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))   # one for each job, so that two of them may share a machine

layout=(--processes "$processes")
if [ "$machines" -gt 1 ]; then
    layout+=(--machines "$machines" --address "$first:$port")
fi

# One task per machine, which starts a process for each GPU. SLURM_NODEID differs between tasks: their shells read it.
# shellcheck disable=SC2016
srun --kill-on-bad-exit=0 bash -c '
    rank=()
    if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then rank=(--machine-rank "$SLURM_NODEID"); fi
    exec dgpo train "$@" "${rank[@]}"
' dgpo "$run" --resume auto "${layout[@]}" "$@"
code=$?

if [ "$code" -eq 75 ]; then
    echo "preempted or out of time: the state is saved, the job is queued again"
    scontrol requeue "$SLURM_JOB_ID" || true   # SLURM may have queued a preempted job already
fi
exit "$code"
