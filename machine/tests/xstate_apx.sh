#!/bin/sh
# SPDX-License-Identifier: GPL-2.0
#
# Linux on the emulated machine finds APX: xstate component 19 of 128 bytes.  Its
# boot log is where it says so, /proc/cpuinfo has no word for the CPU flag.
#
# Exit status: 0 if all cases pass, 1 if not.

n=0
status=0

check() { # NAME COMMAND...
	n=$((n + 1))
	name=$1
	shift
	if "$@" >/dev/null; then
		echo "ok $n $name"
	else
		echo "not ok $n $name"
		status=1
	fi
}

echo 'TAP version 13'
echo '1..2'
check "xstate feature 0x80000 is supported" sh -c "dmesg | grep 'Supporting XSAVE feature 0x80000: .APX registers'"
check "xstate component 19 has 128 bytes" sh -c "dmesg | grep -E 'xstate_offset\[19\]: *[0-9]+, xstate_sizes\[19\]: *128'"
exit $status
