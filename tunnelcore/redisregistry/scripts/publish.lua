-- publish writes the route of a label, over that of an older generation.
-- KEYS: lease:{LABEL}
-- ARGV: device, gen, node, epoch, http, ttl_ms, channel, hint
-- Reply: 1 written; 0 there is a newer one; -1 the label is another device's.
local key = KEYS[1]
local r = redis.call('HMGET', key, 'device', 'gen', 'node', 'epoch', 'http')
if r[1] and r[1] ~= ARGV[1] then
    return -1
end
if tonumber(r[2] or 0) > tonumber(ARGV[2]) then
    return 0
end
redis.call('HSET', key, 'device', ARGV[1], 'gen', ARGV[2], 'node', ARGV[3], 'epoch', ARGV[4], 'http', ARGV[5])
redis.call('PEXPIRE', key, ARGV[6])
if r[2] ~= ARGV[2] or r[3] ~= ARGV[3] or r[4] ~= ARGV[4] or r[5] ~= ARGV[5] then
    redis.pcall('PUBLISH', ARGV[7], ARGV[8]) -- who may not hint changes things all the same
end
return 1
