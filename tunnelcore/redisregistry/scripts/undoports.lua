-- undoports puts ports back to what they were before allocate took them, except
-- where somebody has taken or kept them since.
-- KEYS: {ports}, {ports}:device, {ports}:version
-- ARGV: channel, hint, then for each port the public port, its owner (DEVICE:PORT),
--       the score that allocate wrote, and the one that it found (0: the port was
--       free)
-- Reply: 1
local until_key, owner_key = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local undone = false
for i = 3, #ARGV, 4 do
    local port = ARGV[i]
    if redis.call('HGET', owner_key, port) == ARGV[i + 1]
        and tonumber(redis.call('ZSCORE', until_key, port) or 0) == tonumber(ARGV[i + 2]) then
        if ARGV[i + 3] == '0' then
            redis.call('ZREM', until_key, port)
            redis.call('HDEL', owner_key, port)
        else
            redis.call('ZADD', until_key, ARGV[i + 3], port)
        end
        undone = true
    end
end
if undone then
    changed(KEYS[3], time[1] * 1000 + math.floor(time[2] / 1000), ARGV[1], ARGV[2])
end
return 1
