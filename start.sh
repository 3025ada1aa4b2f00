# Sourced first by exp.sh, trial.sh and gpu.sh, which set the folder they were called from ($caller).
# shellcheck shell=sh disable=SC2154

# It would hide the modules beside a script from Python.
unset PYTHONSAFEPATH
# Lists are split into words, without expanding a *.
set -f

head_of() { # a script: prints its first comment, its help
    sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$1" | grep -v '^shellcheck'
    exit 0
}

words_of() { # flags: each a word between spaces, --flag=value as two
    # shellcheck disable=SC2086
    printf ' %s ' "$(echo $1 | tr '=' ' ')"
}

no_folders() { # flags: ends the script where they say where to write, since the report would not know
    case $(words_of "$1") in *" --out-dir "*)
        echo "error: --out-dir among the flags: OUT_DIR says where everything is written" >&2
        exit 2
        ;;
    esac
}

from_anywhere() { # a path that is printed: absolute where the caller is in another folder
    case "$caller:$1" in "$PWD":* | *:/*) printf '%s' "$1" ;; *) printf '%s/%s' "$PWD" "$1" ;; esac
}

from_caller() { # a path, made absolute by the caller's folder; '' stays ''
    case "$1" in '' | /*) printf '%s' "$1" ;; *) printf '%s/%s' "$caller" "$1" ;; esac
}

files_from_caller() { # flags, of which those that name a network's file or weights are paths
    for word in $1; do
        flag=''
        case "$word" in --*=*) flag=${word%%=*}= word=${word#*=} ;; esac
        case "$word" in
        -* | /*) ;;
        *.py:* | *.pt | *.pth | *.pth.tar)
            if [ "$caller" != "$PWD" ]; then # the folder of the scripts, which word is relative to already
                word=$(from_caller "$word")
                case "$word" in *[[:space:]]*)
                    echo "error: $word has a space, and flags are split at those: go to a folder without" >&2
                    exit 2
                    ;;
                esac
            fi
            ;;
        esac
        printf '%s ' "$flag$word"
    done
}

case "${PYTHON:-}" in */*) PYTHON=$(from_caller "$PYTHON") ;; esac
