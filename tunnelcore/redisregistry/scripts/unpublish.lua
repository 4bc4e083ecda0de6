-- unpublish takes the node out of the route of a label, if it is of that
-- generation: the device is offline.
-- KEYS: lease:{LABEL}
-- ARGV: device, gen, ttl_ms (0: the route is deleted), channel, hint
-- Reply: 1 done; 0 there is another one.
local key = KEYS[1]
local r = redis.call('HMGET', key, 'device', 'gen')
if r[1] ~= ARGV[1] or r[2] ~= ARGV[2] then
    return 0
end
if ARGV[3] == '0' then
    redis.call('DEL', key)
else
    redis.call('HDEL', key, 'node', 'epoch', 'http')
    redis.call('PEXPIRE', key, ARGV[3])
end
redis.pcall('PUBLISH', ARGV[4], ARGV[5]) -- who may not hint changes things all the same
return 1
