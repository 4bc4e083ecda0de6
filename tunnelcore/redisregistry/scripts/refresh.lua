-- refresh prolongs the leases of live tunnels.
-- KEYS: device:{DEVICE}...
-- ARGV: live_ms, tail_ms, then for each device gen, tunnel
-- Reply: now_ms, then for each device an empty string, or the generation that
-- holds it instead (0: none).
local live, tail = tonumber(ARGV[1]), tonumber(ARGV[2])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local out = { now }
for i, key in ipairs(KEYS) do
    local r = redis.call('HMGET', key, 'gen', 'tunnel', 'label', 'until_ms')
    if r[1] == ARGV[2 * i + 1] and r[2] == ARGV[2 * i + 2] and r[3] and tonumber(r[4]) > now then
        redis.call('HSET', key, 'until_ms', now + live, 'seen_ms', now)
        redis.call('PEXPIRE', key, live + tail)
        out[i + 1] = ''
    else
        out[i + 1] = r[1] or '0'
    end
end
return out
