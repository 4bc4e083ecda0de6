-- check says whether a device has a label, or is about to; if not, it sees to it
-- that the device cannot get there without reserving the label anew.
-- KEYS: device:{DEVICE}
-- ARGV: label
-- Reply: 1 it has, 0 it has not.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local r = redis.call('HMGET', KEYS[1], 'label', 'until_ms', 'pend_label', 'pend_ms')
local leased = r[1] == ARGV[1]
local pending = r[3] == ARGV[1]
if (leased and tonumber(r[2]) > now) or (pending and tonumber(r[4]) > now) then
    return 1
end
if leased then
    redis.call('HDEL', KEYS[1], 'label')
end
if pending then
    redis.call('HDEL', KEYS[1], 'pend', 'pend_label', 'pend_ms')
end
return 0
