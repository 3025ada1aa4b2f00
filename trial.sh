#!/bin/sh
# The fair trial: how much distillation adds to a student alone that was tuned as well, by number of
# training images and by width of the student. docs/trial.md says what is done and why.
#
#   sh trial.sh              CIFAR-10 (hours on a CPU; TEACHER spares it the teacher)
#   sh trial.sh --quick      the same on drawn shapes: minutes on two CPU cores
#
# The environment:
#   SIZES WIDTH       numbers of training images, at students of this width
#   WIDTHS SIZE       widths of the student, at this number of images; '' for none
#   VAL_SIZE          images held out of training, on which everything is chosen
#   STEPS FRESH       length of a run in steps; fresh seeds that measure each winner
#   METHODS           further sides, as "sp at"
#   TEACHER           a checkpoint; unset: one is trained on all images but those held out
#   SAME_TEACHER      sizes at which kd also gets a teacher trained on the student's own images
#   TEACHER_FLAGS     flags of train_teacher.py, for whichever teacher is trained here
#   DATASET DATA_DIR OUT_DIR RANKS FLAGS   as in exp.sh; FLAGS go to every stage and every teacher
# A run that has its row in the CSV is skipped, so the same command goes on where it stopped.
# shellcheck disable=SC2086 # the lists in $-variables are meant to be split into words
set -eu
caller=$PWD
CDPATH='' cd -- "$(dirname -- "$0")"
. ./start.sh

QUICK=''
for option in "$@"; do
    case "$option" in
    -h | --help) head_of trial.sh ;;
    --quick) QUICK=1 ;;
    *)
        echo "error: $option is no option of trial.sh, which has --quick" >&2
        exit 2
        ;;
    esac
done

DATA_DIR=$(from_caller "${DATA_DIR:-}") OUT_DIR=$(from_caller "${OUT_DIR:-}")
TEACHER=$(from_caller "${TEACHER:-}")
if [ -n "$QUICK" ]; then
    : "${DATASET:=shapes}" "${OUT_DIR:=quick/trial}" "${SIZES:=100 300}" "${WIDTH:=8}"
    : "${WIDTHS=4 8}" "${SIZE:=300}" "${VAL_SIZE:=1000}" "${STEPS:=60}" "${FRESH:=4}"
    : "${TEACHER_FLAGS:=--width 8 --epochs 5 --t-max 5 --lr 0.05 --momentum 0.9 --batch-size 64}"
fi
: "${DATASET:=cifar10}" "${DATA_DIR:=data}" "${OUT_DIR:=trial}" "${VAL_SIZE:=5000}"
: "${SIZES=500 1000 2000 5000 10000 45000}" "${WIDTH:=16}" "${WIDTHS=4 8 16 32 64}" "${SIZE:=5000}"
: "${STEPS:=2000}" "${FRESH:=}" "${METHODS:=}" "${SAME_TEACHER:=}"
: "${TEACHER_FLAGS:=--epochs 24 --t-max 24 --lr 0.1 --momentum 0.9 --weight-decay 5e-4}"
: "${FLAGS:=}" "${RANKS:=}"

NEEDS=requirements.txt COMMON="--val-size $VAL_SIZE"
. ./setup.sh
. ./ranks.sh


for size in $SIZES $SAME_TEACHER $SIZE $VAL_SIZE; do
    case "$size" in
    0* | *[!0-9]*)
        echo "error: $size is no number of images" >&2
        exit 2
        ;;
    esac
done

fresh=${FRESH:+--fresh $FRESH} # unset: as many as sides.py has

# A failure at one place does not stop the others; the report names unfinished ones.
attempt() { # a command; its status is that of the command, and $failed keeps earlier failures
    before=$failed failed=0
    try "$@"
    [ "$failed" = 0 ] && failed=$before
}

place() { # images, width, then the sides and, where TEACHER is empty, their teacher
    for stage in search final fresh; do
        echo "== $1 images, width $2: $stage" >&2
        attempt everyone "$RANKS" trial.py $THREADS --steps "$STEPS" $fresh $FLAGS --stage $stage \
            --train-size "$1" --width "$2" --sides $3 ${TEACHER:+--teacher "$TEACHER"} || return 0
    done
}

if [ -z "$TEACHER" ]; then
    echo "== teacher" >&2
    everyone 1 train_teacher.py $FLAGS $TEACHER_FLAGS
    found=$(find "$OUT_DIR/checkpoints" -name "*-teacher-s0*-val$VAL_SIZE.pt")
    [ -n "$found" ] && [ "$(echo "$found" | wc -l)" = 1 ] || {
        echo "error: not one teacher of seed 0 in $OUT_DIR/checkpoints: name one as TEACHER" >&2
        exit 2
    }
    TEACHER=$found
fi
sides="alone smooth kd $METHODS"
for size in $SIZES; do
    place "$size" "$WIDTH" "$sides"
done
for width in $WIDTHS; do
    case " $SIZES " in *" $SIZE "*) [ "$width" != "$WIDTH" ] || continue ;; esac
    place "$SIZE" "$width" "$sides"
done
TEACHER=''
for size in $SAME_TEACHER; do
    echo "== a teacher on the same $size images" >&2
    epochs=$("$PYTHON" -c "import trial; print(trial.epochs_of($size, $STEPS))")
    attempt everyone 1 train_teacher.py $FLAGS $TEACHER_FLAGS --seed 1 --train-size "$size" \
        --epochs "$epochs" --t-max "$epochs" --eval-every "$epochs" || continue
    place "$size" "$WIDTH" "kd-same --teacher-seed 1"
done

echo "== report" >&2
"$PYTHON" trial.py --report --out-dir "$OUT_DIR" $fresh
exit "$failed"
