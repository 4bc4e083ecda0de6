-- addgrant records a grant.
-- KEYS: grant:{ID}
-- ARGV: kind, device, port, by, hash, ttl_ms, op (new for each grant: a repeated call
--       finds that it was carried out)
-- Reply: 1 done, 0 the id is in use.
local key = KEYS[1]
local op = redis.call('HGET', key, 'op')
if op then
    return op == ARGV[7] and 1 or 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('HSET', key, 'kind', ARGV[1], 'device', ARGV[2], 'port', ARGV[3], 'by', ARGV[4], 'hash', ARGV[5],
    'created_ms', string.format('%.0f', now), 'until_ms', string.format('%.0f', now + ARGV[6]), 'op', ARGV[7])
redis.call('PEXPIRE', key, ARGV[6])
return 1
