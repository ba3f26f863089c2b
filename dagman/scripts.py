"""The two scripts that DAGMan runs on the access point: POSIX sh, milliseconds, nothing but files of the workflow directory.

Shell and not Python, because the access point's own python3 may be older than what segue needs, and its virtual environment may be gone.
Handovers are written with one key a line and one space before keys of the top level (agent.handover), which `sed` can tell from nested ones.
"""

from __future__ import annotations

PRE_SKIP_EXIT = 80

PRE_SEGMENT = r"""#!/bin/sh
# PRE script of a segment: pre_segment SEGMENT STEPS
# Exit 80 (PRE_SKIP): a handover says that the run is complete, so this segment must not ask for a machine.
# Exit 0: run it. It also tells the retry of a failed segment which machine to avoid.
cd "$(dirname "$0")/.." || exit 0
segment=$1
steps=$2
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
if test -f "$last" && grep -q '^ "state": "temporary"' "$last"; then
    machine=$(sed -n 's/^ "machine": "\([A-Za-z0-9._-]*\)".*/\1/p' "$last" | head -n 1)
    if test -n "$machine"; then
        mkdir -p avoid
        printf 'requirements = $(requirements:true) && (TARGET.Machine != "%s")\n' "$machine" > "avoid/segment-$segment.sub"
    fi
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
