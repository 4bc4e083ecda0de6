-- leasedports lists the public ports that are leased.
-- KEYS: {ports}, {ports}:device, {ports}:version
-- ARGV: rest_ms, version and number of leased ports as known
-- Reply: version, number of leased ports, and, unless both are as known, the ports,
-- and the owner (DEVICE:PORT) of each.
local until_key, owner_key = KEYS[1], KEYS[2]
local time = redis.call('TIME')
local leased = string.format('(%.0f', time[1] * 1000 + math.floor(time[2] / 1000) + ARGV[1])
local version = redis.call('GET', KEYS[3]) or '0'
local count = redis.call('ZCOUNT', until_key, leased, '+inf')
if version == ARGV[2] and count == tonumber(ARGV[3]) then
    return { version, count }
end
local ports = redis.call('ZRANGE', until_key, leased, '+inf', 'BYSCORE')
local owners = {}
for from = 1, #ports, 1000 do
    local to = math.min(from + 999, #ports)
    for i, owner in ipairs(redis.call('HMGET', owner_key, unpack(ports, from, to))) do
        owners[from + i - 1] = owner
    end
end
return { version, #ports, ports, owners }
