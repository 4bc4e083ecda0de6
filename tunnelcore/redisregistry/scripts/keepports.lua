-- keepports makes leased ports last.
-- KEYS: {ports}, {ports}:device, {ports}:version
-- ARGV: live_ms, rest_ms, channel, hint, then for each port the public port and its
--       owner (DEVICE:PORT)
-- Reply: those of the owners given whose public port belongs to another by now.
local until_key, owner_key = KEYS[1], KEYS[2]
local live, rest = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local others, new = {}, false
for i = 5, #ARGV, 2 do
    local port, owner = ARGV[i], ARGV[i + 1]
    local ends = tonumber(redis.call('ZSCORE', until_key, port) or 0)
    local mine = redis.call('HGET', owner_key, port) == owner
    new = new or (mine or ends <= now) and ends <= now + rest
    if not mine and ends <= now then
        redis.call('HSET', owner_key, port, owner)
        mine = true
    end
    if mine then
        redis.call('ZADD', until_key, 'GT', now + live + rest, port)
    else
        others[#others + 1] = owner
    end
end
if new then
    changed(KEYS[3], now, ARGV[3], ARGV[4])
end
return others
