# Sourced by run.sh: flags, numbers and quoting; nothing here starts anything.
# A list is text with a word a line: POSIX sh has no other, and flags hold no line breaks.
# shellcheck shell=sh

newline='
'

die() { # MESSAGE
  printf 'error: %s\n' "$1" >&2
  exit 2
}

is_on() { # VALUE
  case ${1:-} in '' | 0 | no | No | false | False) return 1 ;; esac
}

recipe_words() { # FILE: its flags and those of the files it includes; $ROOT in front of a value is the project
  while read -r flag value; do
    case $flag in
    '' | '#'*) ;;
    include) recipe_words "$ROOT/shell/recipes/$value" ;;
    --gradient[_-]accumulation[_-]steps* | --per[_-]device[_-]train[_-]batch[_-]size* | --output[_-]dir*)
      die "$1: $flag belongs to the script: defaults BATCH_SIZE=... PER_DEVICE_BATCH_SIZE=... OUTPUT_DIR=..."
      ;;
    *)
      # shellcheck disable=SC2016
      case $value in '$ROOT/'*) value=$ROOT/${value#*/} ;; esac
      printf '%s\n' "$flag" "$value"
      ;;
    esac
  done <"$1"
}

with_lines() { # NEXT LINES WORD...: calls NEXT with each line as a word, then the words
  next=$1 lines=$2
  shift 2
  IFS=$newline
  set -f
  # shellcheck disable=SC2086
  set -- $lines "$@"
  set +f
  unset IFS
  "$next" "$@"
}

words_of() { # TEXT: split on blanks, a word a line, no globbing
  (
    set -f
    for word in $1; do printf '%s\n' "$word"; done
  )
}

last_value() { # NAME DEFAULT WORD...: the last value that the words give to the flag --NAME
  wanted=--$1 dashed=--$(printf '%s' "$1" | tr _ -) found=$2 is_value=
  shift 2
  for word; do
    case $word in
    "$wanted" | "$dashed") is_value=1 ;;
    "$wanted="* | "$dashed="*) found=${word#*=} is_value= ;;
    *)
      [ -z "$is_value" ] || found=$word
      is_value=
      ;;
    esac
  done
  printf '%s\n' "$found"
}

without_repeats() { # LINES WORD...: the lines, flag and value in turn, without flags that come again later
  lines=$1
  shift
  later=$(for word; do case $word in --*) printf '%s\n' "${word%%=*}" ;; esac; done | tr - _)
  printf '%s\n' "$lines" | LATER=$later awk '
    BEGIN { split(ENVIRON["LATER"], names, "\n"); for (i in names) gone[names[i]] = 1 }
    NR % 2 { name[NR] = $0; last[$0] = NR; next }
    { value[NR - 1] = $0 }
    END {
      for (i = 1; i < NR; i += 2) {
        key = name[i]; gsub("-", "_", key)
        if (last[name[i]] == i && !(key in gone)) print name[i] "\n" value[i]
      }
    }'
}

require_numbers() { # NAME=VALUE...: the values that are given must be whole numbers of at least 1
  problems=
  for pair; do
    case ${pair#*=} in
    '') ;;
    0* | *[!0-9]* | ??????????*) problems="$problems${newline}error: $pair: must be a whole number of at least 1" ;;
    esac
  done
  [ -n "$problems" ] || return 0
  printf '%s\n' "${problems#"$newline"}" >&2
  exit 2
}

multiples_near() { # NAME VALUE STEP: the multiples of STEP below and above VALUE, as settings
  below=$(($2 / $3 * $3))
  [ "$below" -eq 0 ] || printf '%s or ' "$1=$below"
  printf '%s\n' "$1=$((below + $3))"
}

largest_divisor() { # NUMBER LIMIT: the largest whole number up to LIMIT that divides NUMBER
  divisor=$2
  [ "$divisor" -le "$1" ] || divisor=$1
  while [ $(($1 % divisor)) -ne 0 ]; do divisor=$((divisor - 1)); done
  printf '%s\n' "$divisor"
}

quoted() { # WORD: as a shell reads it back
  case $1 in
  '' | *[!A-Za-z0-9_./:=,@%+-]*) printf '%s\n' "$1" | sed "s/'/'\\\\''/g; 1s/^/'/; \$s/\$/'/" ;;
  *) printf '%s\n' "$1" ;;
  esac
}

print_command() { # WORD...: a flag a line, to be pasted into a shell
  gap=
  for word; do
    case $word in --*) gap=" \\$newline  " ;; esac
    printf '%s%s' "$gap" "$(quoted "$word")"
    gap=' '
  done
  printf '\n'
}
