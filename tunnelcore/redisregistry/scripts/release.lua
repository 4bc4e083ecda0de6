-- release ends a tunnel; its lease runs out after lease_ms.
-- KEYS: device:{DEVICE}
-- ARGV: gen, tunnel (empty: the device is offline), lease_ms, tail_ms, why, op (new for each release: a repeated
--       call finds that it was carried out)
-- Reply: 1, label, ports; or 0, the generation that holds the device (0: none).
local key = KEYS[1]
local lease, tail = tonumber(ARGV[3]), tonumber(ARGV[4])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local r = redis.call('HMGET', key, 'gen', 'tunnel', 'label', 'until_ms', 'ports', 'op')
if r[6] == ARGV[6] then
    return { 1, r[3] or '', r[5] or '' }
end
if r[1] ~= ARGV[1] or (r[2] or '') ~= ARGV[2] or not r[3] or tonumber(r[4]) <= now then
    return { 0, r[1] or '0' }
end
redis.call('HSET', key, 'until_ms', now + lease, 'seen_ms', now, 'why', ARGV[5], 'op', ARGV[6])
redis.call('HDEL', key, 'tunnel', 'instance', 'node', 'epoch', 'replaced')
redis.call('PEXPIRE', key, lease + tail)
return { 1, r[3], r[5] or '' }
