#!/bin/sh
# The fair trial: is a teacher worth it for these images and this network? How much distillation adds
# to a student alone that was tuned as well. docs/trial.md says what is done and why.
#
#   sh trial.sh              CIFAR-10 (hours on a CPU; TEACHER spares it the teacher)
#   sh trial.sh --quick      the same on synthetic shapes: minutes on two CPU cores
#   STUDENT=resnet8 DATASET=folder DATA_DIR=photos sh trial.sh      any network and any images
#
# It says first what it will cost here, and which smaller trial fits an hour. The environment (in
# parentheses: what holds where it is unset):
#   STUDENT           the network that learns, as distill.py's --student (cnn)
#   SIZES WIDTH       numbers of training images (of CIFAR 500 1000 2000 5000 10000 45000, else 0: all
#                     but those held out), at students of this width (the network's own)
#   WIDTHS SIZE       widths of the student (of cnn 4 8 16 32 64), at this number of images; '' for none
#   VAL_SIZE          images held out of training, on which everything is chosen (of CIFAR 5000, else a
#                     quarter)
#   TRIES FRESH       configurations that each side tries (60); fresh seeds that measure each winner (10,
#                     with more than 10,000 images 5)
#   STEPS DOUBLINGS   length of a run in steps (2000); how often it may be doubled until it is enough (2)
#   METHODS           further sides, as "sp at"
#   CONTROLS          kd with other answers: "kd-shuffled kd-random kd-self"
#   SAME_TEACHER      sizes at which kd also gets a teacher trained on the student's own images
#   TEACHER           a checkpoint (one is trained on all images but those held out)
#   TEACHER_MODEL     its network, where it is not ResNet-18
#   TEACHER_FLAGS     flags of train_teacher.py, for whichever teacher is trained here
#   DRAWS TEACHERS    draws of the training images that winners are measured on (1); checkpoints that
#                     teach the second and later draws, in turn (TEACHER)
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
TEACHER=$(from_caller "${TEACHER:-}") TEACHERS=$(files_from_caller "${TEACHERS:-}")
FLAGS=$(files_from_caller "${FLAGS:-}")
TEACHER_FLAGS=$(files_from_caller "${TEACHER_FLAGS:-}")
no_folders "$FLAGS $TEACHER_FLAGS"
STUDENT=$(files_from_caller "${STUDENT:-cnn}")
TEACHER_MODEL=$(files_from_caller "${TEACHER_MODEL:-resnet18}")
if [ -n "$QUICK" ]; then
    : "${DATASET:=shapes}" "${OUT_DIR:=quick/trial}" "${STEPS:=60}" "${DOUBLINGS:=1}" "${TRIES:=8}"
    : "${FRESH:=4}" "${TEACHER_FLAGS:=--epochs 5 --t-max 5 --lr 0.05 --momentum 0.9 --batch-size 64}"
    case "$TEACHER_MODEL " in "resnet18 "*) TEACHER_FLAGS="--width 8 $TEACHER_FLAGS" ;; esac
    case "$DATASET" in shapes) : "${SIZES=100 300}" "${SIZE:=300}" "${VAL_SIZE:=1000}" ;; esac
    case "$STUDENT " in "cnn "*) : "${WIDTH:=8}" "${WIDTHS=4}" ;; esac
fi
: "${DATASET:=cifar10}" "${DATA_DIR:=data}" "${OUT_DIR:=trial}"
OUT_DIR=$(from_anywhere "$OUT_DIR")
case "$DATASET" in
cifar*)
    : "${VAL_SIZE:=5000}" "${SIZES=500 1000 2000 5000 10000 45000}" "${SIZE:=5000}"
    case "$STUDENT " in "cnn "*) : "${WIDTHS=4 8 16 32 64}" ;; esac
    ;;
esac
: "${WIDTH:=}" "${WIDTHS:=}" "${STEPS:=2000}" "${DOUBLINGS:=2}" "${TRIES:=60}" "${FRESH:=}" "${DRAWS:=1}"
: "${METHODS:=}" "${CONTROLS:=}" "${SAME_TEACHER:=}" "${FLAGS:=}" "${RANKS:=}"
: "${TEACHER_FLAGS:=--epochs 24 --t-max 24 --lr 0.1 --momentum 0.9 --weight-decay 5e-4}"

NEEDS=requirements.txt COMMON=''
. ./setup.sh
. ./ranks.sh

if [ -z "${VAL_SIZE:-}" ]; then # what the data allow
    found=$(launch 1 trial.py $FLAGS --sizes)
    VAL_SIZE=${found% *} SIZES=${SIZES-${found#* }}
fi
: "${SIZES=0}"
SIZES=$(echo $SIZES) # without blanks around it
: "${SIZE:=${SIZES##* }}"
for number in $SIZES $SAME_TEACHER $WIDTHS "${SIZE:-0}" "${WIDTH:-0}" "$VAL_SIZE" "$TRIES" "$DRAWS" "$DOUBLINGS"; do
    case "$number" in
    '' | 0?* | *[!0-9]*)
        echo "error: '$number' is no number of images, widths, tries, draws or doublings" >&2
        exit 2
        ;;
    esac
done
for file in "$TEACHER" $TEACHERS; do
    [ -z "$file" ] || [ -f "$file" ] || {
        echo "error: there is no file $file, which TEACHER or TEACHERS names" >&2
        exit 2
    }
done
for side in $METHODS; do
    case "$side" in kd-random | kd-self | kd-same)
        echo "error: $side is no method: CONTROLS=$side (kd-same: SAME_TEACHER)" >&2
        exit 2
        ;;
    esac
done
case " $SAME_TEACHER " in *" 0 "*)
    echo "error: SAME_TEACHER=0 is all images, and their teacher teaches kd already" >&2
    exit 2
    ;;
esac
for side in $CONTROLS; do
    case "$side" in
    kd-shuffled | kd-random | kd-self) ;;
    *)
        echo "error: $side is none of CONTROLS: kd-shuffled, kd-random, kd-self (kd-same: SAME_TEACHER)" >&2
        exit 2
        ;;
    esac
done
own=''  # a network of somebody's own is in no checkpoint
case "$TEACHER_MODEL" in torchvision:* | timm:*) ;; *:*) own="--teacher-model $TEACHER_MODEL" ;; esac
COMMON="--val-size $VAL_SIZE $FLAGS"
asked="--tries $TRIES ${FRESH:+--fresh $FRESH}" # unset: as many as sides.py has
how="$THREADS --student $STUDENT --steps $STEPS --doublings $DOUBLINGS $asked --draws $DRAWS"

# A failure at one place does not stop the others; the report names unfinished ones.
attempt() { # a command; its status is that of the command, and $failed keeps earlier failures
    before=$failed failed=0
    try "$@"
    [ "$failed" = 0 ] && failed=$before
}

teacher_of() { # a draw, from 0: $teacher
    teacher=$TEACHER
    if [ "$1" -gt 0 ] && [ -n "$TEACHERS" ]; then
        draw=$1
        set -- $TEACHERS
        shift $(((draw - 1) % $#))
        teacher=$1
    fi
}

stage() { # its name, a draw, a place, and what else trial.py is told
    name=$1 draw=$2 size=${3%:*} width=${3#*:} && shift 3
    [ "$draw" != 0 ] || draw=''
    echo "== $size images${width:+, width $width}: $name${draw:+, draw $((draw + 1))}" >&2
    ranks=$RANKS
    [ "$name" != images ] || ranks=1 # it trains nothing
    attempt launch "$ranks" trial.py $how $own --stage "$name" --train-size "$size" \
        ${width:+--width $width} ${draw:+--draw $draw} "$@"
}

lengths() { # a place
    count=0
    while [ "$DOUBLINGS" -gt 0 ] && [ "$count" -le "$DOUBLINGS" ]; do
        stage length '' "$1" --sides alone || return 1
        count=$((count + 1))
    done
}

sides_at() { # how many draws, a place, and what else trial.py is told
    draws=$1 place=$2 && shift 2
    for name in search widen final; do
        stage $name '' "$place" "$@" ${TEACHER:+--teacher "$TEACHER"} || return 0
    done
    number=0
    while [ "$number" -lt "$draws" ]; do
        teacher_of "$number"
        stage fresh "$number" "$place" "$@" ${teacher:+--teacher "$teacher"} || return 0
        stage images "$number" "$place" "$@" ${teacher:+--teacher "$teacher"} || :
        number=$((number + 1))
    done
}

places=''
for size in $SIZES; do places="$places $size:$WIDTH"; done
for width in $WIDTHS; do
    case "$places " in *" $SIZE:$width "*) ;; *) places="$places $SIZE:$width" ;; esac
done
if [ -n "$places" ]; then
    echo "== what it costs" >&2
    launch 1 trial.py $how --plan $places --ranks "$RANKS" --sides alone smooth kd $METHODS $CONTROLS \
        $own ${TEACHER:+--teacher "$TEACHER"}
fi

if [ -z "$TEACHER" ]; then
    echo "== teacher" >&2
    launch 1 train_teacher.py --model $TEACHER_MODEL $TEACHER_FLAGS
    found=$(find "$OUT_DIR/checkpoints" -name "*-teacher-s0*-val$VAL_SIZE.pt" -o \
        -name "*-teacher-s0*-val$VAL_SIZE-px*[0-9].pt")
    [ -n "$found" ] && [ "$(echo "$found" | wc -l)" = 1 ] || {
        echo "error: not one teacher of seed 0 in $OUT_DIR/checkpoints: name one as TEACHER" >&2
        exit 2
    }
    TEACHER=$found
fi
for place in $places; do
    lengths "$place" || continue
    sides_at "$DRAWS" "$place" --sides alone smooth kd $METHODS
    for side in $CONTROLS; do
        case "$side" in kd-shuffled) draws=$DRAWS ;; *) draws=1 ;; esac
        sides_at "$draws" "$place" --sides "$side"
    done
done
TEACHER=''
for size in $SAME_TEACHER; do
    echo "== a teacher on the same $size images" >&2
    epochs=$("$PYTHON" -c "import trial; print(trial.epochs_of($size, $STEPS))")
    attempt launch 1 train_teacher.py --model $TEACHER_MODEL $TEACHER_FLAGS --seed 1 \
        --train-size "$size" --epochs "$epochs" --t-max "$epochs" --eval-every "$epochs" || continue
    sides_at 1 "$size:$WIDTH" --sides kd-same --teacher-seed 1
done

echo "== report" >&2
"$PYTHON" trial.py --report --out-dir "$OUT_DIR" $asked
exit "$failed"
