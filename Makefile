# SPDX-License-Identifier: GPL-2.0
#
# The verbs of the project.  Every one is a script in ci/ that brings up to date
# what it needs and takes a lock on the build folder.  The text after ## is what
# "make help" prints.

export BASE KSRC BOCHS_SRC CONFIG KERNEL O JOBS V CPU TESTS T PARAMS DIR
# These, too, go through the environment and not through a shell's command line.
export P OLD RFC
export MAIL_TO = $(value TO)
# CC is the compiler's name unless make was told.
export MAIL_CC = $(if $(filter command,$(origin CC)),$(value CC))

.NOTPARALLEL:
# Every verb: a line with ##.
.PHONY: $(shell sed -n "s/^\([a-z-]*\):.*##.*/\1/p" $(firstword $(MAKEFILE_LIST)))

help:       ## print this
	@ci/help $(MAKEFILE_LIST)
run:        ## run the APX tests: fetches, builds and boots all that this needs
	@ci/run apx
check:      ## run all tests; with TESTS= or CPU= those rows of ci/runs only
	@ci/check
base:       ## fetch Linux, verify it, apply the series: build/linux-VERSION
	@ci/apply linux
lint:       ## check scripts, patches and their order, without building
	@ci/lint
machine:    ## build the emulator: Bochs with the queue of machine/
	@ci/machine
kernel:     ## build the patched kernel, as the fragments CONFIG= of configs/ say
	@ci/kernel
selftests:  ## build the KVM selftests and the machine's own tests
	@ci/selftests
boot:       ## boot CPU= and run the tests named in TESTS=
	@ci/run -t $$TESTS
shell:      ## boot CPU= to a shell on its serial console, the tests and T= in /tests
	@ci/shell
test:       ## run T= on CPU=: a KVM selftest to build, or a static program
	@ci/test
tree:       ## make a git tree in DIR=: the base, and each patch as a commit
	@ci/tree
edit:       ## the same, stopped at the patch P=, to change it
	@ci/tree "$${P:-none}"
refresh:    ## make the series, and selftests/, from that tree
	@ci/refresh
refresh-selftests: ## make the patches that add selftests from selftests/
	@ci/refresh selftests
port:       ## carry the series over to another base, BASE=, in a git tree DIR=
	@ci/port
apply:      ## apply the series to a kernel tree of your own, KSRC=
	@ci/apply-to
mbox:       ## write the series as mails, signed off by git's user: out/*.mbox
	@ci/mbox
post-check: ## say what mail tools and checkers have to say of those mails
	@ci/post-check
range-diff: ## compare the series with that of another revision, OLD=
	@ci/range-diff
mutants:    ## show that the tests notice what they are there for
	@ci/mutants
bisect-check: ## build every patch in every way of ci/builds, boot between
	@ci/bisect all
machine-check: ## compare the emulator with two decoders and with this CPU
	@ci/machine-check
docs-check: ## what the documentation names exists, its commands work
	@ci/docs-check
machine-debugger: ## build the emulator with Bochs's debugger, ask that about R16-R31
	@ci/machine-debugger
machine-mutants: ## show that the tests notice the bugs that the machine's queue mends
	@ci/machine-mutants
machine-fuzz: ## run random bytes as code, the emulator built with sanitizers
	@ci/machine-fuzz
machine-programs: ## programs compiled with APX print what plain ones do
	@ci/machine-programs
machine-bench: ## compare the emulator's speed with that of Bochs as it comes
	@ci/machine-bench
cost:       ## size of KVM and instructions per VM-exit, base and series
	@ci/cost
soak:       ## random guests and a random VMM against a model, for hours
	@ci/soak --long
regress:    ## KVM's own selftests on CPU= or all rows, base against series
	@ci/regress $$CPU
kselftest:  ## the APX tests on CPU=, packed and run by kselftest itself
	@ci/kselftest
debug-check: ## the tests on kernels that check themselves, one of them real-time
	@ci/debug-check
coverage:   ## which lines of the series in arch/x86/kvm the tests run
	@ci/coverage
clean:      ## remove what was built
	@ci/clean
distclean:  ## remove the whole build folder; the downloads stay
	@ci/clean all
