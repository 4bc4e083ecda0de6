-- keepports makes leased ports last.
-- KEYS: {ports}, {ports}:device
-- ARGV: ms, then for each port the public port and its owner (DEVICE:PORT)
-- Reply: the public ports that belong to others.
local until_key, owner_key = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local others = {}
for i = 2, #ARGV, 2 do
    local port, owner = ARGV[i], ARGV[i + 1]
    local mine = redis.call('HGET', owner_key, port) == owner
    if not mine and tonumber(redis.call('ZSCORE', until_key, port) or 0) <= now then
        redis.call('HSET', owner_key, port, owner)
        mine = true
    end
    if mine then
        redis.call('ZADD', until_key, 'GT', now + ARGV[1], port)
    else
        others[#others + 1] = tonumber(port)
    end
end
return others
