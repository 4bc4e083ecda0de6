-- addcode records a claim code, and forgets those that have expired.
-- KEYS: {codes}, {codes}:code
-- ARGV: id, hash, device, ttl_ms, most, op (new for each code: a repeated call
--       finds that it was carried out)
-- Reply: 1 done; 0 the id is in use; -1 there are as many as there may be.
local ends, codes = KEYS[1], KEYS[2]
local id = ARGV[1]
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local expired = redis.call('ZRANGE', ends, '-inf', now, 'BYSCORE', 'LIMIT', 0, 1000)
for _, old in ipairs(expired) do
    redis.call('HDEL', codes, old)
    redis.call('ZREM', ends, old)
end
local there = redis.call('HGET', codes, id)
if there then
    local op = string.match(there, '%S+$')
    return op == ARGV[6] and 1 or 0
end
if redis.call('ZCARD', ends) >= tonumber(ARGV[5]) then
    return -1
end
local device = ARGV[3] == '' and '-' or ARGV[3]
redis.call('HSET', codes, id, ARGV[2] .. ' ' .. device .. ' ' .. string.format('%.0f', now) .. ' ' .. ARGV[6])
redis.call('ZADD', ends, now + ARGV[4], id)
return 1
