# Sourced by exp.sh and trial.sh after setup.sh: how many GPUs and processes there are ($GPUS, $RANKS,
# $THREADS), and how a script is run on them (try, launch). $failed becomes 2 where one failed.
# shellcheck shell=sh disable=SC2034,SC2086

case "$RANKS" in
0* | *[!0-9]*)
    echo "error: RANKS=$RANKS is no number of processes" >&2
    exit 2
    ;;
esac
THREADS=''
# Count the GPUs that torch can use: it may be too new for the driver.
count='import torch; print(torch.cuda.device_count() if torch.cuda.is_available() else 0)'
case $(words_of "$FLAGS") in
*" --device cpu "*) GPUS=0 ;;
*" --device cuda:"* | *" --device mps "*) GPUS=1 ;;
*)
    GPUS=$("$PYTHON" -c "$count")
    case "${CUDA_VISIBLE_DEVICES-all}" in '' | -1 | NoDevFiles) hidden=1 ;; *) hidden='' ;; esac
    if [ "$GPUS$hidden" = 0 ] && nvidia-smi -L 2>/dev/null | grep -q '^GPU'; then
        echo "error: nvidia-smi lists a GPU that torch cannot use: install a newer driver, or a torch for
this one (https://pytorch.org). If you mean the CPU, add to FLAGS: FLAGS=\"--device cpu\" sh $0 $*" >&2
        exit 2
    fi
    ;;
esac
if [ "$GPUS" -gt 0 ]; then
    : "${RANKS:=$GPUS}"
else
    # Small tensors do not keep several threads busy: on two cores, two ranks of one thread took
    # less time than one rank of two (docs/performance.md).
    # What a cluster sets for one process is not how many cores there are for several.
    cores=$(unset OMP_NUM_THREADS OMP_THREAD_LIMIT; nproc 2>/dev/null || echo 2)
    : "${RANKS:=$((cores < 4 ? cores : 4))}"
    THREADS="--threads $((cores > RANKS ? cores / RANKS : 1))"
fi

failed=0 pids='' # of what runs in the background
leave() { # with a status, after the background processes, which save first
    trap '' INT TERM HUP USR1
    [ -z "$pids" ] || sleep 1 # a process just forked still has this shell's traps
    kill $pids 2>/dev/null || true
    wait
    exit "$1"
}
trap 'leave 130' INT
trap 'leave 143' TERM
trap 'leave 129' HUP  # the terminal was closed
trap 'leave 138' USR1 # a scheduler's warning

# A run that failed by itself, as by a loss that became non-finite, has printed a line and does not
# stop the others. Ctrl-C and signals end the script.
try() {
    "$@" || {
        status=$?
        [ "$status" -le 2 ] || leave "$status"
        failed=2
    }
}

launch() { # the number of processes, a script and its flags, after those common to all scripts
    ranks=$1 script=$2 && shift 2
    set -- "$script" --dataset "$DATASET" --data-dir "$DATA_DIR" --out-dir "$OUT_DIR" $COMMON "$@"
    if [ "$ranks" = 1 ]; then
        ${exec:-} "$PYTHON" "$@"
    else
        OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} "$PYTHON" -m torch.distributed.run --standalone \
            --nproc-per-node "$ranks" "$@"
    fi
}
