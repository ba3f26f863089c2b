"""The two scripts that DAGMan runs on the access point: POSIX sh, milliseconds, nothing but files of the workflow directory.

Shell and not Python, because the access point's own python3 may be older than what segue needs, and its virtual environment may be gone.
Handovers are written with one key a line and one space before keys of the top level (agent.handover), which `sed` can tell from nested ones.
"""

from __future__ import annotations

PRE_SKIP_EXIT = 80

PRE_SEGMENT = r"""#!/bin/sh
# PRE script of a segment: pre_segment SEGMENT STEPS RETRY
# Exit 80 (PRE_SKIP): a handover says that the run is complete, so this segment must not ask for a machine.
# Exit 0: run it. It also tells the retry of a failed segment which machine to avoid.
cd "$(dirname "$0")/.." || exit 0
segment=$1
steps=$2
retry=${3:-0}
for file in handovers/segment-*.json; do
    test -f "$file" || continue
    grep -q '^ "state": "complete"' "$file" || continue
    reached=$(sed -n 's/^ "step": \([0-9][0-9]*\).*/\1/p' "$file" | head -n 1)
    if test -n "$reached" && test "$reached" -ge "$steps"; then
        exit 80
    fi
done
rm -f "avoid/segment-$segment.sub"
last="handovers/segment-$segment.json"
machine=
if test -f "$last" && grep -q '^ "state": "temporary"' "$last"; then
    machine=$(sed -n 's/^ "machine": "\([A-Za-z0-9._-]*\)".*/\1/p' "$last" | head -n 1)
elif test "$retry" -gt 0 && test -f events.log; then
    # The agent was killed and left no handover: the event log knows where the node's last job ran.
    machine=$(awk -v node="segment_$segment" '
        /^[0-9][0-9][0-9] \(/ { event = $1; split($2, id, "[(.]"); job = id[2] }
        event == "000" && ($0 ~ "DAG Node: " node "$" || index($0, "DAGNodeName = \"" node "\"")) { mine[job] = 1 }
        event == "001" && $1 == "SlotName:" && mine[job] { sub(/^.*@/, "", $2); found = $2 }
        END { print found }' events.log | sed -n 's/^\([A-Za-z0-9._-]*\)$/\1/p')
fi
if test -n "$machine"; then
    mkdir -p avoid
    printf 'requirements = $(requirements:true) && (TARGET.Machine != "%s")\n' "$machine" > "avoid/segment-$segment.sub"
fi
# The job learns the newest commit that this workflow knows: with an empty store it must not begin at step 0 (the agent ends it).
known=$(sed -n 's/^ "commit": "\([0-9][0-9]*\)\.e\([0-9][0-9]*\)\.tar".*/\2 \1/p' handovers/segment-*.json 2>/dev/null |
    sort -k 1,1n -k 2,2n | tail -n 1)
if test -n "$known"; then
    printf '{"format": 1, "state": "pending", "known": "%s.e%s.tar"}\n' "${known#* }" "${known% *}" > placeholder/.handover.tmp &&
        mv placeholder/.handover.tmp placeholder/handover.json
fi
# Without a mounted staging the store lies here, and HTCondor only adds to it. What its last user removed is removed here too;
# commits of later attempts, which left no list, stay.
if test -f segue-store/kept; then
    epoch=$(head -n 1 segue-store/kept)
    for file in segue-store/checkpoints/[0-9]*.tar; do
        name=${file##*/}
        of=${name##*.e}
        if test "${of%.tar}" -le "$epoch" && ! grep -qxF "$name" segue-store/kept; then
            rm -f "$file"
        fi
    done
fi
exit 0
"""

FINAL_SCRIPT = r"""#!/bin/sh
# POST script of the FINAL node: final DAG_STATUS FAILED_COUNT
# DAGMan takes this exit code for the whole DAG's: a FINAL node that succeeds would make a failed DAG look good.
cd "$(dirname "$0")/.." || exit 1
status=$1
failed=$2
case $status in
    0) state=complete ;;
    2) state=failed ;;
    3) state=aborted ;;
    4) state=removed ;;
    *) state=unknown ;;
esac
printf '{"format": 1, "state": "%s", "dag_status": %s, "failed_nodes": %s, "ended": %s}\n' \
    "$state" "$status" "$failed" "$(date +%s)" > summary.json.tmp && mv summary.json.tmp summary.json
test "$status" = 0
"""
