#!/usr/bin/env bash
# Two nodes with four GPUs each. Before the time limit the run saves and is requeued; the next start resumes it.
#   sbatch examples/slurm.sh /shared/photos --config fine_tune
#SBATCH --job-name=headstart
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -u

head_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"

# Slurm sends USR1 to this shell two minutes before the time limit. The steps pass SIGTERM on to every process, which
# saves and ends with exit code 143.
stop() {
  scancel --signal=TERM "$SLURM_JOB_ID"
  wait "$step"
  scontrol requeue "$SLURM_JOB_ID"
}
trap stop USR1

srun --kill-on-bad-exit=1 torchrun \
  --nnodes "$SLURM_JOB_NUM_NODES" --nproc_per_node 4 \
  --rdzv_backend c10d --rdzv_id "$SLURM_JOB_ID" --rdzv_endpoint "$head_node:29500" \
  -m headstart train "$@" --out "runs/slurm-$SLURM_JOB_ID" --train.resume auto &
step=$!
wait "$step"
