# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0
#
# What the scripts in ci/ share: messages, steps, tables, the lock.  Sourced,
# never run.  Progress goes to stderr, results go to stdout.

set -euo pipefail

# SCRIPT --help: what stands at its head.
case ${1-} in
-h | --help)
	sed -n '2,${/^#/!q; /SPDX-License/d; s/^# \{0,1\}//; p}' "$0" | sed 1d
	exit
	;;
esac

# The variables of the Makefile come through the environment and must not go on
# to the make of the kernel, where O, V and others mean something else.
for _v in BASE KSRC BOCHS_SRC CONFIG KERNEL O JOBS V CPU TESTS T PARAMS DIR; do
	declare "$_v=${!_v-}"
	export -n "${_v?}"
done
unset _v MAKEFLAGS MFLAGS MAKEOVERRIDES MAKELEVEL GREP_OPTIONS CDPATH
export LC_ALL=C

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
O=$(realpath -m -- "${O:-$top/build}")
[ "$O" != "$top" ] || { echo "error: O=$O is the checkout itself; name a folder for the build" >&2; exit 2; }
JOBS=${JOBS:-$(nproc)}
[[ "$JOBS" =~ ^[1-9][0-9]*$ ]] || { echo "error: JOBS=$JOBS is not a number" >&2; exit 2; }
cache=${XDG_CACHE_HOME:-$HOME/.cache}/kvm-apx
# A tree in another folder is none to compile anew, with paths that are relative.
export CCACHE_DIR="$cache/ccache" CCACHE_BASEDIR="$O" CCACHE_NOHASHDIR=1 CCACHE_MAXSIZE=4G
export CCACHE_IGNOREOPTIONS='-fmacro-prefix-map=*'
# Not CCACHE_DEPEND, with which ccache does not see .incbin, i.e. takes a bzImage's
# payload for one of the same size.  It was there once: what it left is not to be found.
export CCACHE_NAMESPACE=2
unset CCACHE_DEPEND
logs=$O/log

# The kernel's build folder.  One with other fragments of configs/ than the
# default has a folder of its own, so that both stay up to date.
read -ra config_names <<<"${CONFIG:-machine}"
CONFIG="${config_names[*]}"
config_suffix=
if [ "$CONFIG" != machine ]; then
	config_suffix=$(printf '+%s' "${config_names[@]}" | sed -e 's|+[^+]*/|+|g' -e 's/\.config//g' -e 's/^+/-/' -e 's/[^A-Za-z0-9+._-]/_/g')
fi
# shellcheck disable=SC2034 # read by those who build and boot
kernel=$O/kernel$config_suffix

# die MESSAGE: the one line that says what is wrong and what to do.  Inside a
# step it is kept for the step to show instead of the tail of the log.
die() {
	printf 'error: %s\n' "$*" >&2
	[ -z "${step_why-}" ] || printf '%s\n' "$*" >"$step_why"
	exit 2
}

# no_arguments ARGS...: for a script whose usage has none.
no_arguments() { [ $# = 0 ] || die "ci/$(basename "$0") takes no arguments, and got '$*'; see ci/$(basename "$0") --help"; }

say() { printf '%s\n' "$*" >&2; }

# ci SCRIPT ARGS...: another script of ci/, with the same variables.
ci() {
	local script=$1
	shift
	BASE=$BASE KSRC=$KSRC BOCHS_SRC=$BOCHS_SRC CONFIG=$CONFIG KERNEL=$KERNEL O=$O JOBS=$JOBS V=$V CPU=$CPU \
		TESTS=$TESTS T=$T PARAMS=$PARAMS DIR=$DIR "$top/ci/$script" "$@"
}

# table FILE: its rows without comments and empty lines.
table() { sed -e 's/^#.*//' -e 's/[[:space:]]#.*//' -e '/^[[:space:]]*$/d' "$1"; }

# base_row NAME [VERSION]: sets base_name, base_version, base_file, base_size,
# base_sha, base_source and base_suite from the table of bases.
base_row() {
	local known
	# shellcheck disable=SC2034 # read by those who call this
	if ! read -r base_name base_version base_file base_size base_sha base_source base_suite < <(
		table "$top/bases" | awk -v n="$1" -v v="${2-}" '$1 == n && (v == "" || $2 == v)' | head -n 1); then
		known=$(table "$top/bases" | awk -v n="$1" '$1 == n {print $2}' | paste -sd' ')
		die "no $1 ${2-} in the table 'bases'; known: $known"
	fi
}

# cpu_row NAME: sets cpu_model, cpu_count, cpu_options, cpu_params and emulator.
cpu_row() {
	local row
	# shellcheck disable=SC2034 # read by those who call this
	if [ -z "$1" ] || ! read -r row cpu_model cpu_count cpu_options cpu_params < <(
		table "$top/machine/cpus" | awk -v n="$1" '$1 == n'); then
		die "unknown CPU '$1'; known: $(table "$top/machine/cpus" | awk '{print $1}' | paste -sd' ')"
	fi
	# shellcheck disable=SC2034 # likewise
	[ "$cpu_count" = 1 ] && emulator=$O/machine/bochs || emulator=$O/machine/bochs-smp
}

# kernel_to_boot: builds the kernel, or looks at the user's.
kernel_to_boot() {
	ci kernel >/dev/null
	[ -n "$KERNEL" ] || grep -qx CONFIG_64BIT=y "$kernel/.config" ||
		die "the kernel of CONFIG='$CONFIG' is 32-bit and the tests are not: it can be built, but not booted"
}

# known_params PARAMETER...: those of a module, MODULE.NAME=VALUE, are ones that the
# built kernel has.  It ignores others without a word.
known_params() {
	local info=$kernel/modules.builtin.modinfo p names
	[ -z "$KERNEL" ] && [ -s "$info" ] || return 0
	for p in "$@"; do
		[[ "$p" == *.* && "${p%%=*}" == *.* && "$p" != sysctl.* ]] || continue
		p=${p%%=*}
		p=${p//-/_}
		names=$(tr '\0' '\n' <"$info" | sed -nE "s/^${p%%.*}\.parmtype=([^:]+):.*/\1/p" | sort -u | paste -sd' ')
		[ -n "$names" ] || die "the kernel has no module ${p%%.*}, of the parameter '$p'; known: kvm kvm_intel kvm_amd and what else is in $info"
		[[ " ${names//-/_} " == *" ${p#*.} "* ]] || die "${p%%.*} has no parameter '${p#*.}'; known: $names"
	done
}

# own_builds_only: for what measures or breaks the kernel that it builds.
own_builds_only() { [ -z "$KERNEL" ] || die "KERNEL= is for make boot, shell, test and run; this command builds its kernels"; }

known_configs() { (cd "$top/configs" && printf '%s\n' *.config) | sed 's/\.config$//' | paste -sd' '; }

# kernel_folder FOLDER: makes FOLDER, two below $O, a build folder for one more
# kernel beside that of $O, with which it shares source, emulator and tests.
kernel_folder() {
	local f
	mkdir -p "$1"
	for f in src machine tests; do ln -sfn "../../$f" "$1/$f"; done
}

# space FOLDER GIB: stops when the disk that holds FOLDER has less than GIB free.
space() {
	local dir=$1 free
	while [ ! -d "$dir" ]; do dir=$(dirname "$dir"); done
	free=$(df -Pk "$dir" | awk 'NR == 2 {print $4}')
	[ "$free" -ge $(($2 * 1024 * 1024)) ] ||
		die "not enough disk: $1 needs $2 GiB free, has $((free / 1024 / 1024)) GiB; free some or choose another folder with O="
}

# Housekeeping of git goes on in the background when its command has ended; it
# would hold the lock, for a minute with a tree of Linux. Said in the
# environment, so that a git below xargs, make or a test hears it, too.
git_setting() {
	local n=${GIT_CONFIG_COUNT:-0}
	export "GIT_CONFIG_KEY_$n=$1" "GIT_CONFIG_VALUE_$n=$2" "GIT_CONFIG_COUNT=$((n + 1))"
}
if [ -z "${KVM_APX_GIT_QUIET-}" ]; then
	git_setting gc.auto 0
	git_setting maintenance.auto false
	export KVM_APX_GIT_QUIET=1
fi

# take_lock: one command at a time works in a build folder.
take_lock() {
	[ "${KVM_APX_LOCK-}" != "$O" ] || return 0
	mkdir -p "$O" 2>/dev/null || die "cannot create the build folder $O; choose another with O="
	exec 9>>"$O/.lock" || die "cannot write to the build folder $O; choose another with O="
	if ! flock -n 9; then
		say "waiting: another command works in $O"
		flock 9
	fi
	export KVM_APX_LOCK=$O
}

# packages: installs what is missing (root) or says what to install.
packages() {
	[ -z "${KVM_APX_PACKAGES-}" ] || return 0
	need < <(table "$top/ci/packages")
	export KVM_APX_PACKAGES=1
}

need() { # the same for lines of "COMMAND PACKAGE" or "/FILE PACKAGE" on stdin
	local what package missing=()
	while read -r what package; do
		case $what in
		/*) [ -e "$what" ] || missing+=("$package") ;;
		*) command -v "$what" >/dev/null || missing+=("$package") ;;
		esac
	done
	[ ${#missing[@]} != 0 ] || return 0
	[ "$(id -u)" = 0 ] || die "packages are missing; as root: apt-get install ${missing[*]}"
	command -v apt-get >/dev/null || die "not a Debian machine; install what these packages have: ${missing[*]}"
	step packages install_packages "${missing[@]}"
}

install_packages() {
	apt-get update || die "apt-get update failed (no network?); install by hand: ${*}"
	DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "$@" ||
		die "apt-get could not install: $*"
}

step_tick() { # NAME LOG: shows that a step is alive until its parent ends it
	local t0=$SECONDS parent=$$ last n=0
	trap - EXIT INT TERM
	while kill -0 "$parent" 2>/dev/null; do
		if [ -t 2 ]; then
			last=$(tail -n 1 "$2" 2>/dev/null | tr -cd '[:print:]' | cut -c1-50)
			printf '\r\033[K%-24s %4d s  %s' "$1" $((SECONDS - t0)) "$last" >&2
		elif [ $((n = n + 1)) -gt 60 ]; then
			n=1
			printf '%-24s %4d s ...\n' "$1" $((SECONDS - t0)) >&2
		fi
		# An orphan of this sleep must not hold a reader of our output.
		sleep 1 >/dev/null 2>&1
	done
}

step_untick() {
	[ -n "${step_ticker-}" ] || return 0
	kill "$step_ticker" 2>/dev/null || true
	wait "$step_ticker" 2>/dev/null || true
	step_ticker=
	[ ! -t 2 ] || printf '\r\033[K' >&2
}

# runs PID: whether that background job still does.
runs() {
	local p
	for p in $(jobs -pr); do [ "$p" != "$1" ] || return 0; done
	return 1
}

# end_jobs SIGNAL [PID]: to the background jobs that still run, or to that one if it
# does, with its process group if it has one.  What has ended may have left its number
# to a process of somebody else.
end_jobs() {
	local p
	for p in $(jobs -pr); do
		[ "${2-$p}" != "$p" ] || kill "-$1" -- "-$p" 2>/dev/null || kill "-$1" "$p" 2>/dev/null || true
	done
}

# step NAME COMMAND ARGS...: runs COMMAND, its output going to a log file, and
# exits if it fails.  With step_soft set it returns instead, the status being in
# step_rc: no caller may test its status, that would disarm set -e in COMMAND.
step() {
	# COMMAND sees these names, so they are not to be anybody else's.
	local _name=$1 _log=$logs/${1//\//-}.log _t0=$SECONDS _rc
	shift
	mkdir -p "$logs"
	export step_why=$_log.why
	rm -f "$step_why"
	if [ "$V" = 1 ]; then
		say "== $_name"
		set +e
		(set -e; "$@") 2>&1 | tee "$_log" >&2
		_rc=${PIPESTATUS[0]}
		set -e
	else
		: >"$_log"
		[ -t 2 ] || say "$_name ..."
		step_tick "$_name" "$_log" 9>&- &
		step_ticker=$!
		set +e
		(set -e; "$@") >"$_log" 2>&1
		_rc=$?
		set -e
		step_untick
	fi
	if [ "$_rc" = 0 ]; then
		step_why='' step_rc=0
		printf '%-24s done in %d s\n' "$_name" $((SECONDS - _t0)) >&2
		return 0
	fi
	if [ -s "$step_why" ]; then
		printf 'error: %s\n' "$(cat "$step_why")" >&2
		rm -f "$step_why"
	else
		[ "$V" = 1 ] || tail -n 20 "$_log" | sed 's/^/  | /' >&2
		printf 'error: %s failed after %d s; its log: %s\n' "$_name" $((SECONDS - _t0)) "$_log" >&2
	fi
	step_why=
	# shellcheck disable=SC2034 # read by those who set step_soft
	step_rc=$_rc
	[ -n "${step_soft-}" ] || exit 2
}

# debian_archive FOLDER TYPE SUITE ELSE: an apt of our own in FOLDER that knows
# nothing but SUITE, packages (TYPE deb) or sources (deb-src), at the mirror that
# the machine itself uses.  Sets apt_opts.  ELSE: what to do without a network.
debian_archive() {
	local mirror keyring=/usr/share/keyrings/debian-archive-keyring.gpg
	# shellcheck disable=SC2016 # apt fills these in
	mirror=$(apt-get indextargets --format '$(REPO_URI) $(ORIGIN) $(LABEL)' 'Created-By: Packages' |
		awk '$2 == "Debian" && $3 == "Debian" {print $1; exit}')
	[ -n "$mirror" ] || die "apt of this machine knows no Debian mirror (never updated?); run apt-get update as root, or $4"
	[ -f "$keyring" ] || die "no $keyring; install the package debian-archive-keyring, or $4"
	mkdir -p "$1/lists/partial" "$1/cache/archives/partial"
	printf '%s [signed-by=%s] %s %s main\n' "$2" "$keyring" "$mirror" "$3" >"$1/sources.list"
	apt_opts=(-q -o "Dir::Etc::SourceList=$1/sources.list" -o Dir::Etc::SourceParts=/dev/null
		-o "Dir::State::Lists=$1/lists" -o Dir::State::status=/dev/null -o "Dir::Cache=$1/cache"
		-o APT::Sandbox::User=root -o APT::Update::Error-Mode=any
		-o Acquire::Languages=none -o Acquire::Retries=1
		-o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30)
	apt-get "${apt_opts[@]}" update ||
		die "no network, or no $3 at this machine's mirror; $4"
}

# up_to_date STAMP KEY: whether the last build was made from the same inputs.
up_to_date() { [ -f "$1" ] && [ "$(cat "$1")" = "$2" ]; }

# kconfig TREE OUT FRAGMENT...: OUT/.config by the caller's kmake: tinyconfig and
# the fragments, the last one that names an option winning.  Sets missing to
# what did not come out like that.
kconfig() {
	local option config=$2/.config
	missing=()
	kmake -s tinyconfig
	KCONFIG_CONFIG=$config "$1/scripts/kconfig/merge_config.sh" -m -O "$2" "$config" "${@:3}"
	kmake -s olddefconfig
	while read -r option; do
		case $option in
		'# '* | *=n) option=${option#\# } option=${option%=n}; ! grep -q "^${option%% *}=" "$config" || missing+=("${option%% *}=n") ;;
		*) grep -qxF "$option" "$config" || missing+=("$option") ;;
		esac
	done < <(cat "${@:3}" | awk '/^CONFIG_|^# CONFIG_.* is not set/ {
		option = $0; sub(/^# /, "", option); sub(/[= ].*/, "", option); last[option] = $0
	} END {for (option in last) print last[option]}')
}

# compile_kvm TREE: KVM's part of the machine's kernel, and no more.  The objects
# are not those of the kernel any more.
compile_kvm() {
	rm -f "$kernel.key"
	make -C "$1" O="$kernel" CC='ccache gcc' LOCALVERSION= -j"$JOBS" arch/x86/kvm/
}

# What takes a sample has a limit in minutes, counts in begun what it began and in
# left what it did not.
minutes='' begun=0 left=0

# limited USAGE ARGS...: takes "-t MINUTES", if it is there, off ARGS into minutes;
# what is behind goes to rest.
limited() {
	local usage=$1
	shift
	if [ "${1-}" = -t ]; then
		[[ "${2-}" =~ ^[0-9]+$ ]] || die "$usage: '-t ${2-}' is no number of minutes"
		minutes=$((10#$2))
		shift 2
	fi
	# shellcheck disable=SC2034 # read by those who call this
	rest=("$@")
}

# over: whether nothing more is to begin; something always is.
over() { [ -n "$minutes" ] && [ "$begun" -gt 0 ] && [ "$SECONDS" -ge $((minutes * 60)) ]; }

# said_over THINGS COMMAND: that some are left, among the results.
said_over() {
	[ "$left" = 0 ] || result skip "$left $1, for another day" "$minutes minutes were over; all of them: $2"
}

# today THING...: a line for each, and with a limit another one first every day (of
# $day, in days since 1970, if that is set).
today() {
	local first=0
	[ $# != 0 ] || return 0
	[ -z "$minutes" ] || first=$((${day:-$(date +%s) / 86400} % $#))
	printf '%s\n' "${@:first + 1}" "${@:1:first}" | sed '/^$/d'
}

# write FILE: stdin to FILE, in one piece or not at all.
write() {
	cat >"$1.tmp"
	mv -f "$1.tmp" "$1"
}

# write_of FILE COMMAND...: the output of COMMAND likewise, and FILE stays as it was
# if COMMAND fails, which a reader of its pipe does not hear of.  No caller may test
# the status, as with step.
write_of() {
	local _rc
	set +e
	(set -e; "${@:2}") >"$1.tmp"
	_rc=$?
	set -e
	[ "$_rc" != 0 ] || mv -f "$1.tmp" "$1" || _rc=$?
	[ "$_rc" = 0 ] || rm -f "$1.tmp"
	[ "$_rc" = 0 ] || die "$1 stays as it was: what writes it failed"
}

# known_groups GROUP...: are in ci/runs.
known_groups() {
	local g groups
	groups=$(table "$top/ci/runs" | awk '{print $1}' | sort -u | paste -sd' ')
	for g in "$@"; do
		[[ " $groups " == *" $g "* ]] || die "no group '$g' in ci/runs; known: $groups"
	done
}

# result pass|fail|skip NAME [DETAIL]: one line per test case, and one of KTAP in
# the file that the caller has set results to.
result() {
	local word ok=ok note="${3:+ # ${3//$'\n'/ }}" n
	case $1 in
	pass) word=PASS ;;
	fail) word=FAIL ok='not ok' ;;
	skip) word=SKIP note=" # SKIP ${3-}" ;;
	esac
	printf '%s  %s%s\n' "$word" "$2" "${3:+  ($3)}"
	[ -s "${results:?}" ] || echo 'KTAP version 1' >"$results"
	n=$(grep -cE '^(not )?ok ' "$results") || true
	printf '%s %d %s%s\n' "$ok" $((n + 1)) "${2//#/}" "$note" >>"$results"
}

# counted pass|fail|skip: how many there are so far.
counted() {
	awk -v what="$1" '/^not ok / {n["fail"]++} /^ok / {n[/ # SKIP/ ? "skip" : "pass"]++} END {print n[what] + 0}' "$results"
}

counts() { printf '%s passed, %s failed, %s skipped\n' "$(counted pass)" "$(counted fail)" "$(counted skip)"; }

# took part|boot NAME SECONDS: what has ended, and the results since the last one
# are its.  A boot is a piece of a part.
took() {
	[ -s "${results:?}" ] || echo 'KTAP version 1' >"$results"
	printf '# %s\t%s\t%s\n' "$@" >>"$results"
}

# times: a table of what was noted so.
times() {
	awk -F'\t' '
		function row(name, c) {printf "%-60s %7d %7d %7d %8d\n", name, c["pass"], c["fail"], c["skip"], $3}
		BEGIN {printf "%-60s %7s %7s %7s %8s\n", "", "passed", "failed", "skipped", "seconds"}
		/^not ok / {n["fail"]++; all["fail"]++}
		/^ok / {w = / # SKIP/ ? "skip" : "pass"; n[w]++; all[w]++}
		$1 == "# boot" {row("  " $2, n); delete n}
		$1 == "# part" {row($2, all); delete n; delete all}' "$results"
}

# summary: the times, if any, and the counts of all results as the last line;
# fails if any test did.  Results without a plan at their end are not whole.
summary() {
	! grep -qE $'^# (part|boot)\t' "$results" || times
	printf '1..%d\n' "$(grep -cE '^(not )?ok ' "$results")" >>"$results"
	counts
	[ "$(counted fail)" = 0 ] && [ "$(counted pass)" != 0 ]
}

# interrupted SIGNAL: says what is known by then, and ends of it.
interrupted() {
	step_untick
	if [ -f "${results-}" ] && [ -z "${KVM_APX_RESULTS-}" ]; then
		say "interrupted, $(counts) until then: $results"
	fi
	trap - "$1"
	kill -"$1" $$
}

trap 'step_untick' EXIT
trap 'interrupted INT' INT
trap 'interrupted TERM' TERM
