-- hold reserves a label for a device.
-- KEYS: lease:{LABEL}
-- ARGV: device, token, ttl_ms, and whom it may be taken from: device, hold
-- Reply: 1; or 0, device, hold of whom it is reserved for.
local key = KEYS[1]
local r = redis.call('HMGET', key, 'device', 'hold')
local device, hold = r[1], r[2] or ''
if device and device ~= ARGV[1] then
    if device ~= ARGV[4] or hold ~= ARGV[5] then
        return { 0, device, hold }
    end
    redis.call('DEL', key)
end
if device ~= ARGV[1] or hold ~= ARGV[2] then
    -- gen 0: what ends the device's last lease late must not end this one.
    redis.call('HSET', key, 'device', ARGV[1], 'hold', ARGV[2], 'gen', '0')
    redis.call('HDEL', key, 'node', 'epoch', 'http')
end
redis.call('PEXPIRE', key, ARGV[3])
return { 1 }
