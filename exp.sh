#!/bin/sh
# The whole experiment: teacher, student alone, the grid, the ResNet-18 students, the summary.
#
#   sh exp.sh                the reference's protocol on CIFAR-10 (a GPU: minutes to hours)
#   sh exp.sh --quick        the same pipeline on drawn shapes, in minutes on two CPU cores
#   LOOP=1 sh exp.sh         the grid cell by cell instead of in one pass; the same rows
#
# In the environment: ALPHAS TEMPERATURES SEEDS EPOCHS T_MAX DATASET DATA_DIR OUT_DIR narrow or widen
# it; T_MAX is the students', the teacher stays as it is. RESNET_SEEDS are the seeds of the two
# ResNet-18 students ('' for none). FLAGS goes to every script, TEACHER_FLAGS to the teacher's after
# it. RANKS processes share the grid. What has a row in the CSV is not run again.
set -eu
cd "$(dirname "$0")"

case "${1:-}" in
--quick)
    : "${DATASET:=shapes}" "${OUT_DIR:=quick}" "${EPOCHS:=12}" "${T_MAX:=12}"
    : "${ALPHAS:=0.5 0.9}" "${TEMPERATURES:=1 4 10}" "${SEEDS:=0}"
    : "${FLAGS:=--train-size 4000}"
    : "${TEACHER_FLAGS:=--width 16 --momentum 0.9 --weight-decay 5e-4 --t-max 12}"
    RESNET_FLAGS="--student-width 16"
    ;;
"") RESNET_FLAGS="" ;;
*)
    echo "usage: [NAME=value ...] sh exp.sh [--quick]" >&2
    exit 2
    ;;
esac

: "${DATASET:=cifar10}" "${DATA_DIR:=data}" "${OUT_DIR:=.}" "${EPOCHS:=100}" "${T_MAX:=200}"
: "${ALPHAS:=0.1 0.25 0.5 0.75 0.9}" "${TEMPERATURES:=1 2.5 5 7.5 10 20 30 40 50}" "${SEEDS:=0}"
: "${RESNET_SEEDS=0}" "${FLAGS:=}" "${TEACHER_FLAGS:=}" "${LOOP:=}" "${RANKS:=}"

NEEDS=requirements.txt
. ./setup.sh

GPUS=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU' || true)
if [ "$GPUS" = 0 ] && [ "${1:-}" != --quick ]; then
    cat >&2 <<'NOTE'
No GPU found: this runs on the CPU. On two cores one epoch of the ResNet-18 teacher on all of CIFAR-10
takes 5 to 13 minutes, so the full protocol takes days. `sh exp.sh --quick` shows the same pipeline in
minutes; EPOCHS=10 FLAGS="--train-size 10000" sh exp.sh is a small run on the real images.
NOTE
fi

common="--dataset $DATASET --data-dir $DATA_DIR --out-dir $OUT_DIR --epochs $EPOCHS $FLAGS"
students="$common --t-max $T_MAX"

# shellcheck disable=SC2086  # the lists are meant to be split
{
    "$PYTHON" train_teacher.py $common $TEACHER_FLAGS
    "$PYTHON" train_student.py $students --seed $SEEDS

    if [ -n "$LOOP" ]; then
        for seed in $SEEDS; do
            for alpha in $ALPHAS; do
                for temperature in $TEMPERATURES; do
                    "$PYTHON" distill.py $students --seed $seed --alpha $alpha \
                        --temperature $temperature
                done
            done
        done
    else
        "$PYTHON" distill.py $students --seed $SEEDS --alpha $ALPHAS --temperature $TEMPERATURES
    fi

    for seed in $RESNET_SEEDS; do
        resnet="$students $RESNET_FLAGS --student resnet18 --seed $seed"
        "$PYTHON" distill.py $resnet --alpha 0.5 --temperature 10
        "$PYTHON" distill.py $resnet --alpha 0.9 --temperature 5
    done
}

"$PYTHON" summarize.py --out-dir "$OUT_DIR"
