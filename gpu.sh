#!/bin/sh
# Tests, the quick experiment and the benchmark on a GPU.
#
#   sh gpu.sh              into gpu-report/, or gpu-report-2/ and so on where that is taken
#   sh gpu.sh FOLDER       into a new FOLDER, with either
#   sh gpu.sh --reference  instead of the quick experiment, the reference's ResNet-18 rows on CIFAR-10
#                          in DATA_DIR: the teacher of width 64, and both students and the ResNet-18
#                          alone with the SEEDS (0 1 2); EPOCHS, DATASET and FLAGS as of exp.sh
#   LIMIT=300 sh gpu.sh    no part longer than so many seconds (900)
#
# It runs the tests that need a GPU; the quick experiment twice, where the second must find everything
# done; and the benchmark, which estimates what `sh exp.sh` will take here. Nothing is downloaded but
# packages for setup.sh, and by --reference CIFAR-10, where DATA_DIR has none. A part that fails or
# exceeds its limit does not stop the others. FOLDER/REPORT.md has the results and can be attached to an
# issue. Exit status: 1 where a part failed, 2 where there is no GPU or the FOLDER is there already.
# FLAGS="--device cpu" rehearses it.
# shellcheck disable=SC2086 # FLAGS and SEEDS are meant to be split into words
set -eu
caller=$PWD
CDPATH='' cd -- "$(dirname -- "$0")"
. ./start.sh
trap 'exit 130' INT
trap 'exit 143' TERM

REFERENCE='' folder=''
for option in "$@"; do
    case "$option" in
    -h | --help) head_of gpu.sh ;;
    --reference) REFERENCE=1 ;;
    -*)
        echo "error: $option is no option of gpu.sh, which has --reference" >&2
        exit 2
        ;;
    *)
        [ -z "$folder" ] || {
            echo "error: $folder and $option: one FOLDER at most" >&2
            exit 2
        }
        folder=$option
        ;;
    esac
done
DATA_DIR=$(from_caller "${DATA_DIR:-}") OUT=$(from_caller "$folder")
: "${DATA_DIR:=data}" "${SEEDS:=0 1 2}" "${FLAGS:=}" "${LIMIT:=900}" "${OUT:=gpu-report}"
export DATA_DIR FLAGS
if [ -n "$folder" ] && [ -e "$OUT" ]; then
    echo "error: $OUT is there already: name a new folder" >&2
    exit 2
fi
number=1
while [ -e "$OUT" ]; do
    number=$((number + 1))
    OUT=gpu-report-$number
done

NEEDS="requirements.txt requirements-dev.txt"
. ./setup.sh
export PYTHON

driver=$(nvidia-smi --id=0 --query-gpu=driver_version --format=csv,noheader 2>/dev/null) ||
    driver=unknown
probe='
import sys, torch
built = f"torch {torch.__version__} for CUDA {torch.version.cuda}"
if not torch.cuda.is_available():
    sys.exit(f"error: torch sees no GPU here ({built}, driver {sys.argv[1]}), and gpu.sh is for one")
gpu = torch.cuda.get_device_properties(0)
print(f"{gpu.name}, {gpu.total_memory / 2**30:.0f} GiB; {built}; driver {sys.argv[1]}")'
case $(words_of "$FLAGS") in
*" --device cpu "*) machine="a rehearsal on the CPU" ;;
*) machine=$("$PYTHON" -W ignore -c "$probe" "$driver") || exit 2 ;;
esac
commit=$(git rev-parse --short=10 HEAD 2>/dev/null) || commit=unknown
echo "$machine" >&2
mkdir -p "$OUT"

rows='' failed=''
part() { # what it is, the file for its output, the command
    name=$1 log=$2
    shift 2
    echo "== $name" >&2
    since=$(date +%s) result=passed
    # SIGINT first, at which a run saves. 124 is timeout's own status.
    timeout --signal=INT --kill-after=60 "$LIMIT" "$@" >"$OUT/$log" 2>&1 ||
        result="**failed**, status $?"
    seconds=$(($(date +%s) - since))
    echo "   $result, $seconds s" >&2
    [ "$result" = passed ] || failed="$failed $log"
    rows="$rows| $name | $result | $((seconds / 60)) min $((seconds % 60)) s | $log |
"
}

# The quick experiment again: a run that is trained again would have a new row.
nothing_left='
before=$(cksum <"$OUT_DIR/results/results.csv") && sh exp.sh --quick || exit
[ "$before" = "$(cksum <"$OUT_DIR/results/results.csv")" ] || {
    echo "error: results.csv is another one now: not every run was skipped"
    exit 1
}'

part "tests on the GPU" tests.txt \
    "$PYTHON" -m pytest -q tests/test_cuda.py tests/test_cuda_kills.py
if [ -n "$REFERENCE" ]; then
    export OUT_DIR="$OUT/reference"
    for seed in $SEEDS; do
        part "the reference's ResNet-18 rows, seed $seed" "reference-$seed.txt" \
            env SEEDS= RESNET_SEEDS="$seed" sh exp.sh
        # With the teacher's seed it is the teacher over again.
        [ "$seed" = 0 ] || part "a ResNet-18 alone, seed $seed" "alone-$seed.txt" \
            "$PYTHON" train_student.py --dataset "${DATASET:-cifar10}" --data-dir "$DATA_DIR" \
            --out-dir "$OUT_DIR" --epochs "${EPOCHS:-100}" $FLAGS --model resnet18 --seed "$seed"
    done
    part "the reference's table" quick.txt "$PYTHON" summarize.py --out-dir "$OUT_DIR"
else
    export OUT_DIR="$OUT/quick"
    part "exp.sh --quick" quick.txt sh exp.sh --quick
    part "the same again, nothing left to do" again.txt sh -c "$nothing_left"
fi
part "bench.py and the estimate" bench.txt \
    "$PYTHON" bench.py --cells 1 45 225 --estimate --out-dir "$OUT/bench"

{
    printf '# gpu.sh\n\n%s; commit %s; %s.\n\n' "$machine" "$commit" "$(date -u '+%F %R UTC')"
    printf '| part | result | time | output |\n|---|---|---:|---|\n%s\n' "$rows"
    for log in $failed; do
        printf 'The end of %s:\n\n```\n%s\n```\n\n' "$log" "$(tail -n 20 "$OUT/$log")"
    done
    printf 'Tests: %s\n\n' "$(grep . "$OUT/tests.txt" | tail -n 1)"
    if [ -n "$REFERENCE" ]; then
        cat "$OUT/reference/results/table.md" 2>/dev/null || echo "There is no table."
    else
        printf '```\n%s\n```\n\n' "$(sed -n '/^time taken/p; /^  .*: [0-9]* min/p' "$OUT/quick.txt")"
    fi
    cat "$OUT/bench/results/bench.md" 2>/dev/null || echo "There is no bench.md."
} >"$OUT/REPORT.md"

echo "written: $OUT/REPORT.md" >&2
if [ -n "$failed" ]; then
    echo "failed:$failed" >&2
    exit 1
fi
