-- undoports puts ports back to what they were before allocate took them, except
-- where somebody has taken or kept them since.
-- KEYS: {ports}, {ports}:device
-- ARGV: for each port the public port, its owner (DEVICE:PORT), the score that
--       allocate wrote, and the one that it found (0: the port was free)
-- Reply: 1
local until_key, owner_key = KEYS[1], KEYS[2]
for i = 1, #ARGV, 4 do
    local port = ARGV[i]
    if redis.call('HGET', owner_key, port) == ARGV[i + 1]
        and tonumber(redis.call('ZSCORE', until_key, port) or 0) == tonumber(ARGV[i + 2]) then
        if ARGV[i + 3] == '0' then
            redis.call('ZREM', until_key, port)
            redis.call('HDEL', owner_key, port)
        else
            redis.call('ZADD', until_key, ARGV[i + 3], port)
        end
    end
end
return 1
