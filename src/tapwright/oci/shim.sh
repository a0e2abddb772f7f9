# The process that a platform waits for: it stands for a process in the guest, and ends with its
# exit status, 128 + N for signal N. It is a shell, which needs a tenth of Python's memory.
#
# Descriptor 3 is the supervisor's control socket, with a JSON object a line: it brings the exit
# status, and takes signals and sizes. When the supervisor dies, the process in the guest has died,
# too: then the shim ends with 137, as if killed. Descriptor 4 is the terminal, if $1 is "terminal".
#
# It forwards signals, except those that can't be caught (9, 19), those that the shell needs or
# raises itself (4, 7, 8, 11, 13, 17), and those of the C library (32, 33). A signal that comes
# between the shell's last look for signals and its read(2), which takes microseconds, is forwarded
# with the next signal or line: a shell can't wait for both at once, as ppoll(2) does.

cd /
interrupted=

forward() {
    interrupted=yes
    printf '{"signal": %d}\n' "$1" >&3
}

resize() {
    interrupted=yes
    # shellcheck disable=SC2046  # two words, which printf takes one by one
    set -- $(stty size <&4)
    [ "${1:-0}" = 0 ] || printf '{"resize": [%d, %d]}\n' "$1" "$2" >&3
}

trap '' 13
for number in 1 2 3 5 6 10 12 14 15 16 18 20 21 22 23 24 25 26 27 29 30 31; do
    # shellcheck disable=SC2064  # the number of now
    trap "forward $number" "$number"
done
if [ "$1" = terminal ]; then
    trap resize 28
    resize
fi

# Bash runs a trap only after `read` has returned.
limit=
[ -z "${BASH_VERSION-}" ] || [ "$1" != terminal ] || limit='-t 1'

while :; do
    interrupted=
    # shellcheck disable=SC2086  # nothing, or two words
    if IFS= read -r $limit line <&3; then
        number=${line#"${line%%[0-9]*}"}
        number=${number%%[!0-9]*}
        case $line in
        *'"exited"'*'"signal"'*) exit $((128 + number)) ;;
        *'"exited"'*) exit "$number" ;;
        esac
    else
        # More than 128: interrupted, or out of time.
        [ $? -gt 128 ] || [ "$interrupted" ] || exit 137
    fi
done
