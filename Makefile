# SPDX-License-Identifier: GPL-2.0
#
# The verbs of the project.  Every one is a script in ci/ that brings up to date
# what it needs and takes a lock on the build folder.  The text after ## is what
# "make help" prints.

export BASE KSRC BOCHS_SRC O JOBS V CPU TESTS T PARAMS DIR

.NOTPARALLEL:
.PHONY: help run check base machine kernel selftests boot shell test tree mutants bisect-check cost clean distclean

help:       ## print this
	@ci/help $(MAKEFILE_LIST)
run:        ## run the APX tests: fetches, builds and boots all that this needs
	@ci/run apx
check:      ## run all tests of the project; what .ci/run calls
	@ci/check
base:       ## fetch Linux, verify it, apply the series: build/linux-VERSION
	@ci/apply linux
machine:    ## build the emulator: Bochs with the queue of machine/
	@ci/machine
kernel:     ## build the patched kernel
	@ci/kernel
selftests:  ## build the KVM selftests and the machine's own tests
	@ci/selftests
boot:       ## boot CPU= and run the tests named in TESTS=
	@ci/run -t $(TESTS)
shell:      ## boot CPU= to a shell on its serial console, the tests in /tests
	@ci/shell
test:       ## build the KVM selftest T= from anywhere and run it on CPU=
	@ci/test
tree:       ## make a git tree in DIR=: the base, and each patch as a commit
	@ci/tree
mutants:    ## show that the tests notice what they are there for
	@ci/mutants
bisect-check: ## build every patch in every way of ci/builds, boot between
	@ci/bisect all
cost:       ## size of KVM and instructions per VM-exit, base and series
	@ci/cost
clean:      ## remove what was built
	@ci/clean
distclean:  ## remove the whole build folder; the downloads stay
	@ci/clean all
