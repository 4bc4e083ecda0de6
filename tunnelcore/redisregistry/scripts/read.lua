-- read reads devices, and the time that their leases are judged by.
-- KEYS: device:{DEVICE}...
-- Reply: now_ms, then for each device its fields or nil where it has none.
local time = redis.call('TIME')
local out = { time[1] * 1000 + math.floor(time[2] / 1000) }
for i, key in ipairs(KEYS) do
    out[i + 1] = redis.call('HMGET', key, 'label', 'gen', 'tunnel', 'instance', 'node', 'epoch',
        'until_ms', 'seen_ms', 'why', 'ports', 'rests')
end
return out
