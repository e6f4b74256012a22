// SPDX-License-Identifier: GPL-2.0
/* Runs lua.lua, which is compiled in. */
#include <lauxlib.h>
#include <lua.h>
#include <lualib.h>

#include "program.h"

static const char script[] = {
#embed "lua.lua"
	, 0
};

int main(void)
{
	lua_State *l = luaL_newstate();

	luaL_openlibs(l);
	/* Not from an address and the time, which Lua takes for a seed. */
	if (luaL_dostring(l, "math.randomseed(20261121)") || luaL_dostring(l, script)) {
		printf("%s\n", lua_tostring(l, -1));
		return 1;
	}
	lua_close(l);
	return 0;
}
