# SPDX-License-Identifier: GPL-2.0
#
# Read by make in tools/testing/selftests/kvm: builds one test from outside the
# tree exactly as that Makefile builds its own.
#
# USER_SRC  the source     USER_BIN  the program

all:
include Makefile

# A source may include one of the tree's own.
CFLAGS += -I.

$(USER_BIN).o: $(USER_SRC)
	$(CC) $(CFLAGS) $(CPPFLAGS) $(TARGET_ARCH) -MT $@ -c $< -o $@
$(USER_BIN): $(USER_BIN).o $(LIBKVM_OBJS)
	$(CC) $(CFLAGS) $(CPPFLAGS) $(LDFLAGS) $(TARGET_ARCH) $< $(LIBKVM_OBJS) $(LDLIBS) -o $@
-include $(USER_BIN).d
