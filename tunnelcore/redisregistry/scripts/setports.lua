-- setports writes down the ports of a device and those that rest, if both are
-- still what the caller has read.
-- KEYS: device:{DEVICE}
-- ARGV: gen, tunnel, ports as read, ports to write, until_ms as read (new ports
--       are safe until then), rests as read, rests to write
-- Reply: 1, until_ms - now_ms; 2 read again; 0, the generation that holds the
-- device (0: none).
local key = KEYS[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local r = redis.call('HMGET', key, 'gen', 'tunnel', 'label', 'until_ms', 'ports', 'rests')
if r[1] ~= ARGV[1] or r[2] ~= ARGV[2] or not r[3] or tonumber(r[4]) <= now then
    return { 0, r[1] or '0' }
end
local ports, rests = r[5] or '', r[6] or ''
local function write(field, old, new)
    if new == old then
        return
    elseif new == '' then
        redis.call('HDEL', key, field)
    else
        redis.call('HSET', key, field, new)
    end
end
if ports ~= ARGV[4] or rests ~= ARGV[7] then -- else a repeated call, or nothing to do
    if ports ~= ARGV[3] or rests ~= ARGV[6] or tonumber(ARGV[5]) <= now then
        return { 2 }
    end
    write('ports', ports, ARGV[4])
    write('rests', rests, ARGV[7])
end
return { 1, tonumber(r[4]) - now }
