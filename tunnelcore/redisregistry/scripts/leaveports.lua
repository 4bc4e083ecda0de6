-- leaveports sets how long ports still stay the device's that it no longer has, or
-- that its lease will soon have ended for.
-- KEYS: {ports}, {ports}:device, {ports}:version
-- ARGV: lease_ms (0: they are given back), rest_ms, channel, hint, then for each
--       port the public port, its owner (DEVICE:PORT), and its score as read: with
--       another one, somebody has taken or kept it since, and it is left alone.
-- Reply: 1
local until_key, owner_key = KEYS[1], KEYS[2]
local lease, rest = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local given = false
for i = 5, #ARGV, 3 do
    local port, score = ARGV[i], tonumber(ARGV[i + 2])
    if redis.call('HGET', owner_key, port) == ARGV[i + 1]
        and tonumber(redis.call('ZSCORE', until_key, port) or 0) == score then
        redis.call('ZADD', until_key, now + lease + rest, port)
        given = given or lease == 0
    end
end
if given then
    changed(KEYS[3], now, ARGV[3], ARGV[4])
end
return 1
