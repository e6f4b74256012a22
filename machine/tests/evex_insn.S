/* SPDX-License-Identifier: GPL-2.0 */
#include "rex2_run.S"
