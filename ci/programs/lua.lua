-- SPDX-License-Identifier: GPL-2.0
-- A bit of everything that an interpreter does.

local function fib(n) return n < 2 and n or fib(n - 1) + fib(n - 2) end
print("fib", fib(16))

local primes, sieve = {}, {}
for i = 2, 1000 do
	if not sieve[i] then
		primes[#primes + 1] = i
		for k = i * i, 1000, i do sieve[k] = true end
	end
end
print("primes", #primes, primes[#primes], table.concat(primes, " ", 1, 10))

local t = {}
for i = 1, 500 do t[i] = math.random(1000000) end
table.sort(t)
print("sorted", t[1], t[250], t[500])
table.sort(t, function(a, b) return a % 1000 > b % 1000 or (a % 1000 == b % 1000 and a < b) end)
print("sorted", t[1], t[250], t[500])

local words = {}
for w in ("the quick brown fox jumps over the lazy dog and the fox"):gmatch("%a+") do
	words[w] = (words[w] or 0) + 1
end
local names = {}
for w in pairs(words) do names[#names + 1] = w end
table.sort(names)
for i, w in ipairs(names) do names[i] = w .. "=" .. words[w] end
print(table.concat(names, ","))
print(("%5.2f|%-8s|%08x|%g|%q"):format(math.pi, "left", 48879, 1e100, "a\nb"))
print(("hello world"):gsub("(%w+) (%w+)", "%2 %1"), ("x"):rep(10, "-"), ("abc"):byte(1, -1))

print(7 // 2, -7 // 2, 7 % -3, -7 % 3, 7.5 // 2, -7.5 % 2, 1 << 62, ~0 >> 60, 5 & 3 | 8 ~ 1)
print(math.maxinteger + 1 == math.mininteger, math.tointeger(3.0), 2^53, 10 / 4, 3 | 0)
print(math.floor(-3.5), math.ceil(-3.5), math.fmod(-7, 3), math.ult(1, -1), string.format("%.14g", math.sqrt(2)))

local co = coroutine.wrap(function(a)
	for i = 1, 5 do a = a + coroutine.yield(a * i) end
	return "done"
end)
print(co(1), co(2), co(3), co(4), co(5), co(6))

local vector = setmetatable({}, {__call = function(class, x, y) return setmetatable({x = x, y = y}, class) end})
vector.__index = vector
vector.__add = function(a, b) return vector(a.x + b.x, a.y + b.y) end
vector.__eq = function(a, b) return a.x == b.x and a.y == b.y end
vector.__tostring = function(v) return "(" .. v.x .. "," .. v.y .. ")" end
print(tostring(vector(1, 2) + vector(3, 4)), vector(1, 2) == vector(1, 2), vector(1, 2) == vector(2, 1))

print(pcall(error, {code = 1}) == false, select(2, pcall(function() local x = nil; return x.y end)))
print(select("#", table.unpack({1, nil, 3}, 1, 3)), load("return 6 * 7")(), string.pack("<i4", -2):byte(1, -1))
for i = 1, 50 do
	local garbage = {}
	for k = 1, 50 do garbage[k] = {tostring(i * k)} end
end
collectgarbage()

local function queens(n)
	local count, cols, d1, d2 = 0, {}, {}, {}
	local function place(row)
		if row > n then count = count + 1 return end
		for c = 1, n do
			if not (cols[c] or d1[row + c] or d2[row - c + n]) then
				cols[c], d1[row + c], d2[row - c + n] = true, true, true
				place(row + 1)
				cols[c], d1[row + c], d2[row - c + n] = nil, nil, nil
			end
		end
	end
	place(1)
	return count
end
print("queens", queens(6))
