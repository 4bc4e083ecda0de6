-- leaveports sets how long ports stay out of use that a device no longer has, or
-- that its lease will soon have ended for.
-- KEYS: {ports}, {ports}:device
-- ARGV: ms (0: they are free at once), own (1: they stay the device's until
--       then, 0: they do not), then for each port the public port and its owner
-- Reply: 1
local until_key, owner_key = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
for i = 3, #ARGV, 2 do
    local port = ARGV[i]
    if redis.call('HGET', owner_key, port) == ARGV[i + 1] then
        if ARGV[1] == '0' then
            redis.call('ZREM', until_key, port)
        else
            redis.call('ZADD', until_key, now + ARGV[1], port)
        end
        if ARGV[2] == '0' then
            redis.call('HDEL', owner_key, port)
        end
    end
end
return 1
