#!/bin/bash
#SBATCH --job-name=emg-gpt2
#SBATCH --array=0-3              # 2 folds × 2 seeds
#SBATCH --cpus-per-task=2
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@120      # SIGTERM for this script, 120 s before the time is up
#SBATCH --requeue
#SBATCH --open-mode=append       # a job that starts again goes on with its log
#SBATCH --output=emg-gpt2-%A-%a.log

seeds=(0 1)
fold=$((SLURM_ARRAY_TASK_ID / ${#seeds[@]}))
seed=${seeds[SLURM_ARRAY_TASK_ID % ${#seeds[@]}]}
run=runs/cluster/fold$fold-seed$seed

stop() { # main.py writes a checkpoint; then the job goes back into the queue, unless it was cancelled
    kill -TERM "$pid"
    wait "$pid"
    if [ "$(squeue --noheader --jobs "$SLURM_JOB_ID" --format %T)" = RUNNING ]; then
        scontrol requeue "$SLURM_JOB_ID"
    fi
    exit
}
trap stop TERM

[ -e "$run/report.html" ] && exit # the run is finished
if [ -e "$run/last" ] || [ -e "$run/.last.old" ]; then
    python main.py --resume "$run" &
else
    rm -rf "$run" # of a job that was killed before its first checkpoint
    python main.py --settings cluster.toml --fold "$fold" --seed "$seed" --run-dir "$run" &
fi
pid=$!
wait "$pid"
