-- setcred writes the secrets of a device, over the version that was read.
-- KEYS: cred:{DEVICE}
-- ARGV: version (0: nothing is recorded), current, next, op (new for each change: a
--       repeated call finds that it was carried out)
-- Reply: 1, the new version, now_ms; or 0, the version that is there.
local key = KEYS[1]
local r = redis.call('HMGET', key, 'version', 'op', 'changed_ms')
if r[2] == ARGV[4] then
    return { 1, r[1], r[3] }
end
if (r[1] or '0') ~= ARGV[1] then
    return { 0, r[1] or '0' }
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local version = math.max(tonumber(ARGV[1]) + 1, now)
redis.call('HSET', key, 'version', string.format('%.0f', version), 'changed_ms', string.format('%.0f', now), 'op', ARGV[4])
for i, field in ipairs({ 'current', 'next' }) do
    if ARGV[i + 1] == '' then
        redis.call('HDEL', key, field)
    else
        redis.call('HSET', key, field, ARGV[i + 1])
    end
end
return { 1, string.format('%.0f', version), string.format('%.0f', now) }
