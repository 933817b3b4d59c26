#!/usr/bin/env bash
# Label on the nodes of a Slurm job with Ray. The job may be preempted: 120 s before its end the
# labeler is asked to stop, finishes the units in progress, and the job is queued again; it resumes.
#
#     sbatch docs/cluster/slurm.sh corpus.jsonl TEACHER LABELS [FLAGS OF labeler label ...]
#
# Each teacher takes as many GPUs as it has tensor- and pipeline-parallel ranks. One that is larger
# than a node spans several (here 16 GPUs on two nodes of eight):
#
#     sbatch docs/cluster/slurm.sh corpus.jsonl TEACHER LABELS \
#         --engine-arg.tensor-parallel-size 8 --engine-arg.pipeline-parallel-size 2
#SBATCH --job-name=softshards-label
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@120
set -euo pipefail

corpus=$1 teacher=$2 labels=$3
shift 3
port=6379

head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
head_ip=$(srun --nodes=1 --ntasks=1 -w "$head_node" hostname --ip-address | awk '{print $1}')
export RAY_USAGE_STATS_ENABLED=0

# --block keeps each step alive as long as its node's Ray is.
srun --nodes=1 --ntasks=1 -w "$head_node" \
    ray start --head --node-ip-address="$head_ip" --port=$port \
    --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" --block &
until ray health-check --address "$head_ip:$port" 2>/dev/null; do sleep 2; done
if ((SLURM_JOB_NUM_NODES > 1)); then
    srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) \
        --exclude="$head_node" \
        ray start --address="$head_ip:$port" \
        --num-cpus="$SLURM_CPUS_PER_TASK" --num-gpus="$SLURM_GPUS_ON_NODE" --block &
fi

labeler label "$corpus" --model "$teacher" --out "$labels" --ray "$head_ip:$port" --ray-wait 5 "$@" &
labeler=$!

# shellcheck disable=SC2329  # the trap calls it
requeue() {
    kill -TERM "$labeler" 2>/dev/null || true
    wait "$labeler" || true # it finishes the units in progress
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap requeue TERM

code=0
wait "$labeler" || code=$?
ray stop || true
exit "$code"
