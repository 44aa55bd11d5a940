#!/bin/bash
# A training on two machines of four GPUs under Slurm, which goes on by itself after a time limit, a preemption or the
# failure of a machine. Submit it from the environment that has fer-pll; the arguments are those of fer-pll finetune:
#   sbatch train_scripts/accelerate/slurm.sh --data data/mine --output_dir runs/mine --save_strategy steps --save_steps 500
# The output folder must be one that all machines share. Options before the file name override those below, as in
# `sbatch --nodes 1 --time 12:00:00 train_scripts/accelerate/slurm.sh ...`. COMMAND=pretrain runs the other training.
#
# Two minutes before the time limit Slurm sends SIGUSR1 to every process (longer, if a step and a checkpoint take longer):
# all finish their step, save it and end with status 75. Then the job is queued again, under the same number, and
# `--resume_from_checkpoint auto` goes on from there. An error ends the job with its own status, and is not queued again.
# srun starts one process for each GPU, with no torchrun between, which would make 1 of every status.
#SBATCH --job-name=fer-pll
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=4
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out

# The first process is on this machine.
MASTER_ADDR=$(hostname)
export MASTER_ADDR
export MASTER_PORT=$((20000 + SLURM_JOB_ID % 10000))
export WORLD_SIZE=$SLURM_NTASKS
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

# A process that has saved ends; the main one may still be at its last lines, so nothing kills it.
srun --kill-on-bad-exit=0 bash -c 'RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID exec "$@"' - \
    python -m "fer_pll.commands.${COMMAND:-finetune}" --resume_from_checkpoint auto "$@"
status=$?
if [ "$status" -eq 75 ]; then
    echo "job $SLURM_JOB_ID is queued again (start ${SLURM_RESTART_COUNT:-0} has ended)"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
