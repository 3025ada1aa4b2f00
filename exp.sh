#!/bin/sh
# The whole experiment: teacher, student alone, the grid, the ResNet-18 students, the report.
#
#   sh exp.sh                the reference's protocol on CIFAR-10, five seeds (for a GPU)
#   sh exp.sh --quick        the same pipeline on synthetic shapes: minutes on two CPU cores
#   sh exp.sh --ablation     also the grid with the soft loss times T^2
#   LOOP=1 sh exp.sh         cell by cell instead of together; the same rows on a CPU
#   RECIPE=crd sh exp.sh     the field's table instead: methods x pairs of teacher and student on
#                            CIFAR-100, by RepDistiller's protocol
#
# The environment makes it smaller or larger (in parentheses: what holds where it is unset):
#   ALPHAS                              the grid's weights of the teacher's loss (0.1 0.25 0.5 0.75 0.9)
#   TEMPERATURES                        the grid's (1 2.5 5 7.5 10 20 30 40 50)
#   SEEDS                               of the grid (0 1 2 3 4, with PAIRS 0 1 2); '' is no grid, and
#                                       with PAIRS the teachers alone
#   METHODS                             a grid each (kd; with PAIRS fourteen of them); sp:30,300 is sp
#                                       with those --beta
#   EPOCHS                              of the teacher and the students (100)
#   T_MAX                               of the students with a cosine (200); not of the teacher
#   TEACHER                             a checkpoint, instead of training a teacher
#   RESNET_SEEDS                        seeds of the two ResNet-18 students (0); '' for none
#   RECIPE                              reference or crd, for every script (reference)
#   PAIRS                               teacher:student, several: a table of METHODS for each pair
#                                       instead of the grid; RECIPE=crd has six
#   DATASET DATA_DIR OUT_DIR            what is read (cifar10, in data) and where everything is written (.)
#   FLAGS                               flags for every script (--quick's own come before them)
#   TEACHER_FLAGS STUDENT_FLAGS         after them, for the teacher and for the grid's students
#   RANKS                               processes that a grid is distributed over
#   PYTHON                              instead of python3, or of the .venv made where that lacks a package
# A run that has its row in the CSV is skipped, so the same command goes on where it stopped.
# shellcheck disable=SC2086 # the lists in $-variables are meant to be split into words
set -eu
caller=$PWD
CDPATH='' cd -- "$(dirname -- "$0")"
. ./start.sh

QUICK='' ABLATION='' RESNET_FLAGS='' NARROW=''
PAIRS=$(echo ${PAIRS:-}) METHODS=$(echo ${METHODS:-}) # a list of blanks is empty
[ -z "${SEEDS:-}" ] || SEEDS=$(echo $SEEDS)
for option in "$@"; do
    case "$option" in
    -h | --help) head_of exp.sh ;;
    --quick) QUICK=1 ;;
    --ablation) ABLATION=1 ;;
    *)
        echo "error: $option is no option of exp.sh, which has --quick and --ablation" >&2
        exit 2
        ;;
    esac
done

cosine() { # T_max, then a script's flags: --t-max, unless they or the recipe say --schedule step
    case " $RECIPE $* " in " crd "*) ;; *" --schedule step "* | *" --schedule=step "*) ;; *) echo "--t-max $1" ;; esac
}

DATA_DIR=$(from_caller "${DATA_DIR:-}") OUT_DIR=$(from_caller "${OUT_DIR:-}")
TEACHER=$(from_caller "${TEACHER:-}")
FLAGS=$(files_from_caller "${FLAGS:-}")
TEACHER_FLAGS=$(files_from_caller "${TEACHER_FLAGS:-}")
STUDENT_FLAGS=$(files_from_caller "${STUDENT_FLAGS:-}")
no_folders "$FLAGS $TEACHER_FLAGS $STUDENT_FLAGS"
: "${RECIPE:=reference}" "${PAIRS:=}"
if [ "$RECIPE" = crd ]; then # its settings and weights are the scripts' to know
    if [ -n "$QUICK" ]; then
        : "${PAIRS:=resnet14:resnet8}" "${EPOCHS:=4}" "${METHODS:=kd at kd+sp}" "${SEEDS=0 1}"
    fi
    : "${DATASET:=${QUICK:+shapes}}" "${DATASET:=cifar100}"
    first="resnet56:resnet20 resnet110:resnet32 resnet32x4:resnet8x4"
    : "${PAIRS:=$first wrn-40-2:wrn-16-2 vgg13:vgg8 resnet32x4:shufflenetv2}"
fi
[ "${LOOP:-}" != 0 ] || LOOP=''
if [ -n "$PAIRS" ]; then
    [ -z "$ABLATION${LOOP:-}${ALPHAS:-}${TEMPERATURES:-}" ] || {
        echo "error: --ablation, LOOP, ALPHAS and TEMPERATURES are of the grid: with PAIRS or RECIPE=crd leave them out" >&2
        exit 2
    }
    pairs=''
    for pair in $PAIRS; do
        pairs="$pairs ${pair%%:*}:$(files_from_caller "${pair#*:}")"
        case "$pair" in
        torchvision:*:* | timm:*:* | *.py:*:*)
            echo "error: $pair: a teacher from elsewhere is no part of PAIRS: train it with train_teacher.py, then TEACHER=its checkpoint PAIRS=teacher:resnet8" >&2
            exit 2
            ;;
        ?*:?*) ;;
        *)
            echo "error: $pair is no pair of PAIRS, as resnet56:resnet20: a teacher and its student" >&2
            exit 2
            ;;
        esac
    done
    PAIRS=$pairs
    : "${METHODS:=kd fitnet at sp cc vid rkd pkt nst crd kd+crd dkd dist ls}" "${SEEDS=0 1 2}"
fi
if [ -n "$QUICK" ]; then
    short=${EPOCHS:-5} # of the ResNet-18 students
    : "${DATASET:=shapes}" "${OUT_DIR:=quick}" "${EPOCHS:=20}" "${T_MAX:=20}" "${SEEDS=0 1 2}"
    : "${ALPHAS:=0.5 0.9}" "${TEMPERATURES:=1 2 4}"
    [ "$RECIPE" = crd ] || FLAGS="--batch-size 32 --last-batch drop --lr 0.02 --momentum 0.9 $FLAGS"
    [ "$DATASET" = folder ] || FLAGS="--train-size 1000 $FLAGS" # a folder has what it has
    case " $FLAGS $TEACHER_FLAGS" in *" --model"*) ;; *) NARROW="--width 16" ;; esac
    [ "$RECIPE" = crd ] || TEACHER_FLAGS="--weight-decay 5e-4 $(cosine "$EPOCHS" $FLAGS $TEACHER_FLAGS) $TEACHER_FLAGS"
    RESNET_FLAGS="--student-width 8 --epochs $short $(cosine "$short" $FLAGS)"
fi
: "${DATASET:=cifar10}" "${DATA_DIR:=data}" "${OUT_DIR:=.}" "${T_MAX:=200}"
OUT_DIR=$(from_anywhere "$OUT_DIR")
: "${ALPHAS:=0.1 0.25 0.5 0.75 0.9}" "${TEMPERATURES:=1 2.5 5 7.5 10 20 30 40 50}"
[ "$RECIPE" = crd ] || : "${EPOCHS:=100}"
: "${SEEDS=0 1 2 3 4}" "${METHODS:=kd}" "${RESNET_SEEDS=0}"
: "${FLAGS:=}" "${TEACHER_FLAGS:=}" "${STUDENT_FLAGS:=}" "${LOOP:=}" "${RANKS:=}"

# A folder may hold the teachers of PAIRS, too.
which=''
case " $FLAGS $TEACHER_FLAGS" in *" --model"*) ;; *) which="--teacher resnet18" ;; esac
[ -z "$TEACHER$PAIRS" ] || which=''

NEEDS=requirements.txt COMMON="--recipe $RECIPE ${EPOCHS:+--epochs $EPOCHS}"
. ./setup.sh
. ./ranks.sh
if [ "$GPUS" = 0 ] && [ -z "$QUICK" ]; then
    cat >&2 <<'NOTE'
This runs on the CPU. On two cores an epoch of the ResNet-18 teacher on all of CIFAR-10 took 5 to 13
minutes, so the full protocol takes days. `sh exp.sh --quick` shows the same pipeline in minutes;
EPOCHS=10 T_MAX=10 FLAGS="--train-size 10000" sh exp.sh is a small run on the real images.
NOTE
fi

# Print on stderr what begins, and at the end how long each part took.
doing='' times=''
part() {
    now=$(date +%s)
    [ -z "$doing" ] || times="$times
  $doing: $(((now - since) / 60)) min $(((now - since) % 60)) s"
    doing=$1 since=$now
    [ -z "$doing" ] || echo "== $doing" >&2
}


student() { # processes, a script and its flags
    ranks=$1 script=$2
    shift 2
    try launch "$ranks" "$script" $THREADS $which $(cosine "$T_MAX" $FLAGS $STUDENT_FLAGS) \
        $FLAGS $STUDENT_FLAGS ${TEACHER:+--teacher "$TEACHER"} "$@"
}

grid() { # flags of distill.py: all cells together, or cell by cell
    if [ -n "$LOOP" ]; then
        for seed in $SEEDS; do for alpha in $ALPHAS; do for temperature in $TEMPERATURES; do
            student 1 distill.py --seed $seed --alpha $alpha --temperature $temperature "$@"
        done; done; done
    else
        student "$RANKS" distill.py --seed $SEEDS --alpha $ALPHAS --temperature $TEMPERATURES "$@"
    fi
}

resnet() { # alpha, T: a ResNet-18 student; with several GPUs on the next one, in the background
    set -- 1 distill.py $which $(cosine "$T_MAX" $FLAGS) $FLAGS ${TEACHER:+--teacher "$TEACHER"} \
        $RESNET_FLAGS --student resnet18 --seed $seed --alpha "$1" --temperature "$2"
    if [ "$GPUS" -gt 1 ]; then
        # RANK as under torchrun, so that `leave` after a Ctrl-C is not taken for a second one.
        (
            export CUDA_VISIBLE_DEVICES="${gpus%%,*}" RANK=0
            exec=exec # so that the pid that `leave` knows is the script's
            launch "$@"
        ) &
        pids="$pids $!" gpus=${gpus#*,}
    else
        try launch "$@"
    fi
}

for pair in $PAIRS; do
    if [ -z "$TEACHER" ]; then
        part "teacher ${pair%%:*}"
        case "$pair" in resnet18:* | cnn:*) width=$NARROW ;; *) width='' ;; esac # others have none to choose
        launch 1 train_teacher.py --model "${pair%%:*}" $width $FLAGS $TEACHER_FLAGS
    fi
    [ -n "$SEEDS" ] || continue
    taught=$pair
    [ -z "$TEACHER" ] || taught="${pair#*:} by $TEACHER"
    part "$taught: alone, $METHODS"
    student "$RANKS" distill.py --teacher "${TEACHER:-${pair%%:*}}" --student "${pair#*:}" \
        --method $METHODS --alone --seed $SEEDS
done
[ -z "$PAIRS" ] || SEEDS='' RESNET_SEEDS=''

if [ -z "$TEACHER" ] && [ -z "$PAIRS" ]; then
    part "teacher"
    launch 1 train_teacher.py $NARROW $FLAGS $TEACHER_FLAGS
fi

# The baselines are trained with the first grid: the student alone, and for each alpha the control.
alone="--alone --control"
[ -n "$SEEDS" ] || METHODS='' ABLATION='' LOOP=''
if [ -n "$LOOP" ]; then
    part "student alone, and control"
    student 1 train_student.py --seed $SEEDS
    controls=
    for alpha in $ALPHAS; do case "$alpha" in 1 | 1.*) ;; *) controls="$controls $alpha" ;; esac; done
    [ -z "$controls" ] || student 1 distill.py --seed $SEEDS --alpha $controls --method none
    alone=''
fi
for method in $METHODS; do
    part "${alone:+student alone, control and }grid, $method"
    grid --method "$method" $alone
    alone=''
done
if [ -n "$ABLATION" ]; then
    part "grid, kd x T^2"
    grid --scale-t2
fi
for seed in $RESNET_SEEDS; do
    part "ResNet-18 students, seed $seed"
    gpus=${CUDA_VISIBLE_DEVICES:-0,1}
    resnet 0.5 10
    resnet 0.9 5
    for pid in $pids; do try wait "$pid"; done
    pids=''
done

part ""
echo "time taken:$times" >&2
"$PYTHON" summarize.py --out-dir "$OUT_DIR"
exit "$failed"
