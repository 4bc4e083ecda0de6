-- publish writes the route of a label, over that of an older generation.
-- KEYS: lease:{LABEL}
-- ARGV: device, gen, node, epoch, http, ttl_ms
-- Reply: 1 written; 0 there is a newer one; -1 the label is another device's.
local key = KEYS[1]
local r = redis.call('HMGET', key, 'device', 'gen')
if r[1] and r[1] ~= ARGV[1] then
    return -1
end
if tonumber(r[2] or 0) > tonumber(ARGV[2]) then
    return 0
end
redis.call('HSET', key, 'device', ARGV[1], 'gen', ARGV[2], 'node', ARGV[3], 'epoch', ARGV[4], 'http', ARGV[5])
redis.call('PEXPIRE', key, ARGV[6])
return 1
